"""Hours of each stage: as a range from data sheets, or from what was measured on this machine.

A range is from the best case (the fastest card of its kind, the shortest lengths, the best use) to the worst.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flows.estimate.amounts import Range
from flows.estimate.cards import Card
from flows.estimate.engines import EngineMemory
from flows.estimate.passes import BF16
from flows.estimate.past import Calibration, PastRun
from flows.estimate.shapes import ModelShape
from flows.estimate.workload import Answers, StageWork, count_layers
from stages.config.engines import Calling, VllmServer
from stages.config.params import Params
from stages.config.placement import LOOP, count_replica_gpus, find_gpu_use

HOUR = 3600.0
TRAIN_USE = Range(0.25, 0.45)  # of a card's arithmetic in training (MFU). Assumed
READ_USE = Range(0.35, 0.65)  # in reading prompts. Assumed
BANDWIDTH_USE = Range(0.4, 0.8)  # in writing answers. Assumed
TOKEN_OVERHEAD = Range(0.002, 0.008)  # seconds of a decoding step beside memory and arithmetic. Assumed
START = Range(20, 180)  # seconds from a stage's start to its first token or step. Assumed
CPU_START = Range(8, 45)
CPU_STEP = Range(0.05, 0.6)  # seconds of a training step beside its arithmetic. Assumed
CPU_TOKEN = Range(1 / 8000, 1 / 300)  # seconds of an answer's token beside its arithmetic. Assumed
SYNC = Range(2e9, 2e10)  # bytes a second from the trained weights to the engine. Assumed
LAST_ALONE = Range(1.1, 1.8)  # a step of the loop waits for its longest answers. Assumed
REPLY = Range(1.0, 10.0)  # seconds of a reply of an endpoint beside its tokens
REPLY_TOKENS = Range(20, 120)  # tokens a second of one reply
KNOWN = Range(0.85, 1.2)  # what a run takes beside another one of the same work here
NEAR = Range(0.75, 1.3)  # and beside a calibration


@dataclass(frozen=True)
class Hours:
    """How long a stage takes, and where that is known from."""

    hours: Range
    source: str  # data sheet, assumption, last run, measured here


class HourEstimator:
    """Hours of every run with the engines that memory has room for."""

    def __init__(
        self,
        params: Params,
        shapes: Mapping[str, ModelShape],
        card: Card,
        engines: Mapping[tuple[str, str], EngineMemory],
        calibration: Calibration | None,
    ) -> None:
        """`engines` are those of each stage and entry of `models`, on GPUs."""
        self._params, self._shapes, self._card = params, shapes, card
        self._engines, self._calibration = engines, calibration

    def estimate(self, run: str, work: StageWork, past: PastRun | None) -> Hours:
        """Returns the hours of `run`."""
        stage = run.partition("@")[0]
        if past is not None and (seconds := self._scale_past(work, past)) is not None:
            return Hours(KNOWN.scale(seconds / HOUR), "last run")
        if not work.steps and not work.answers:
            return Hours(self._estimate_rest(run).scale(1 / HOUR), "assumption")
        measured = self._calibration is not None and not self._card.gpu
        seconds_range = CPU_START if not self._card.gpu else START
        if measured and self._calibration is not None:
            began = self._calibration.train_start_seconds if work.steps else self._calibration.engine_start_seconds
            seconds_range = NEAR.scale(began)
        for each in work.answers:
            seconds_range += self._answer(stage, each, work)
        seconds_range += self._train(stage, work)
        return Hours(seconds_range.scale(1 / HOUR), "measured here" if measured else "data sheet")

    def _scale_past(self, work: StageWork, past: PastRun) -> float | None:
        """Seconds, if that run says something about this one's work."""
        fresh = sum(each.fresh for each in work.answers)
        if work.steps:
            if not past.steps or not past.step_flops:
                return None
            flops = (work.flops.low + work.flops.high) / 2 / work.steps
            beside = max(0.0, past.seconds - past.step_seconds)
            return beside + past.step_seconds / past.steps * work.steps * flops / past.step_flops
        if not work.answers:
            return past.seconds
        if not fresh:
            return max(0.0, past.seconds - past.generate_seconds) if past.generated else past.seconds
        if not past.generated:
            return None
        return max(0.0, past.seconds - past.generate_seconds) + past.generate_seconds * fresh / past.generated

    def _estimate_rest(self, run: str) -> Range:
        """Seconds of a stage that neither trains nor asks models, by its questions."""
        stage, _, item = run.partition("@")
        if stage == "model":
            build = self._params.models[item].build
            if build is None:
                return Range(5, 900)
            text = self._shapes[item].text
            steps = build.steps + build.vision_steps
            flops = count_layers(text, Range.exactly(6.0 * build.tokens_per_pack * steps))
            return Range(10, 40) + Range(0.02, 0.25).scale(steps) + flops.over(self._card.flops)
        count = sum(one for one in self._params.questions.splits.values() if one != "all")
        each = {"questions": Range(0.001, 0.015), "pool": Range(1e-4, 2e-3)}.get(stage, Range(0, 1e-4))
        return Range(0.4, 40) + each.scale(count)

    # --- training -----------------------------------------------------------------------------------------------------

    def _train(self, stage: str, work: StageWork) -> Range:
        if not work.steps:
            return Range()
        ranks = self._params.runtime.count_ranks(stage)
        if self._card.gpu:
            seconds = work.flops.over(self._card.flops.times(TRAIN_USE).scale(ranks))
        elif self._calibration is not None:
            one = work.flops.scale(1 / self._calibration.train_flops)
            seconds = one.times(NEAR) + NEAR.scale(self._calibration.step_seconds * work.steps)
        else:
            seconds = work.flops.over(self._card.flops) + CPU_STEP.scale(work.steps)
        if stage == LOOP and self._card.gpu:
            sent = BF16 * self._shapes["student"].weights
            seconds += Range.exactly(sent * work.steps).over(SYNC)
        return seconds

    # --- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, stage: str, asked: Answers, work: StageWork) -> Range:
        if not asked.fresh:
            return Range()
        if asked.model not in self._shapes:
            return self._reply(stage, asked)
        text = self._shapes[asked.model].text
        read, write = count_layers(text, asked.tokens_in), count_layers(text, asked.tokens_out)
        if not self._card.gpu:
            if (known := self._calibration) is not None:
                spent = (read + write).scale(1 / known.engine_flops) + asked.tokens_out.scale(known.token_seconds)
                return spent.times(NEAR)
            return (read + write).over(self._card.flops) + asked.tokens_out.times(CPU_TOKEN)
        use, engine = find_gpu_use(self._params.runtime, stage, asked.model), self._engines.get((stage, asked.model))
        if use is None or engine is None:  # servers that run already: as fast as one replica of this card
            return (read + write).over(self._card.flops.times(READ_USE))
        size = count_replica_gpus(use)
        gpus = use.gpus or tuple(range(self._params.runtime.gpus))
        replicas = use.replicas if isinstance(use, VllmServer) and use.replicas else max(1, len(gpus) // size)
        room = engine.cached_tokens / max(1.0, asked.prompt.high + asked.answer.high / 2)
        open_answers = asked.fresh / replicas
        if stage == LOOP:
            open_answers = min(open_answers, asked.fresh / max(1, work.steps) / replicas)
        at_once = max(1.0, min(engine.sequences, room, open_answers))
        flops = self._card.flops.scale(size)
        context = asked.prompt + asked.answer.scale(0.5)
        moved = context.scale(at_once * engine.token_bytes) + Range.exactly(engine.weights)
        step = moved.over(self._card.bandwidth.times(BANDWIDTH_USE)) + TOKEN_OVERHEAD
        written = step.times(asked.answer).scale(asked.fresh / replicas / at_once)
        seconds = read.over(flops.times(READ_USE).scale(replicas)) + written
        return seconds.times(LAST_ALONE) if stage == LOOP else seconds

    def _reply(self, stage: str, asked: Answers) -> Range:
        settings = self._params.runtime.find_engine(stage, asked.model)
        at_once = settings.concurrency if isinstance(settings, Calling) else 1
        reply = REPLY + asked.answer.over(REPLY_TOKENS)
        return reply.scale(asked.fresh / min(at_once, asked.fresh))
