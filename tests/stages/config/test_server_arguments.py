"""Which arguments reach `vllm serve`: an option by its full name, with a checked value, and nothing else."""

from typing import Any

import pytest

from stages.config.params import validate_params
from stages.config.server_arguments import OPTIONS, check_server_arguments
from stages.config.yaml import ParamsError, merge_params, read_yaml

REFUSED: tuple[tuple[str, ...], ...] = (
    # abbreviations, as argparse reads them
    *(("--dtyp", "float16"), ("--hos", "0.0.0.0"), ("--load-forma", "dummy"), ("--enforce-eage",)),
    *(("--block-siz", "16"),),
    *(("--trust",), ("--conf", "x.yaml"), ("--midd", "os.system"), ("--gpu-memory-util", "0.5"), ("--hf-o", "{}")),
    # short forms, other prefixes, other spellings
    *(("-q", "fp8"), ("-qfp8",), ("-O3",), ("-O", "3"), ("-tp", "2"), ("-cc", "{}"), ("-sc", "{}"), ("-ac", "{}")),
    *(("-O.mode=3",), ("--enforce_eager",), ("--block_size", "16"), ("--block-size=16",), ("--enforce-eager=1",)),
    *(("--no-enforce-eager",), ("--no-enable-prefix-caching",), ("--ENFORCE-EAGER",), (" --enforce-eager",)),
    *(("--enforce-eager ",), ("\u2013\u2013enforce-eager",), ("--enforce\u2010eager",), ("+enforce-eager",)),
    *(("@args",),),
    *(("/enforce-eager",), ("--",), ("-",), ("",), ("model",), ("--enforce-eager", "model"), ("--block-size\0", "16")),
    # code, files, addresses
    *(("--config", "x.yaml"), ("--config=x.yaml",), ("--middleware", "os.system"), ("--worker-cls", "a.B")),
    *(("--worker-extension-cls", "a.B"), ("--scheduler-cls", "a.B"), ("--logits-processors", "a.B")),
    *(("--reasoning-parser-plugin", "x.py"), ("--tool-parser-plugin", "x.py"), ("--io-processor-plugin", "x")),
    *(("--plugins", "x"), ("--trust-remote-code",), ("--trust_remote_code",), ("--model-impl", "transformers")),
    *(("--hf-overrides", "{}"), ("--hf-overrides.rope_theta", "1"), ("--hf-config-path", "x")),
    *(("--code-revision", "x"),),
    *(("--host", "0.0.0.0"), ("--port", "80"), ("--uds", "/tmp/x"), ("--root-path", "/x"), ("--api-key", "x")),
    *(("--ssl-keyfile", "x"), ("--allowed-origins", '["*"]'), ("--allow-credentials",), ("--log-config-file", "x")),
    *(("--allowed-local-media-path", "/"), ("--download-dir", "/x"), ("--otlp-traces-endpoint", "http://x")),
    *(("--kv-transfer-config", "{}"), ("--kv-events-config", "{}"), ("--compilation-config", "{}")),
    *(("--additional-config", "{}"), ("--enable-lora",), ("--lora-modules", "a=b"), ("--profiler-config", "{}")),
    *(("--data-parallel-address", "0.0.0.0"), ("--master-addr", "0.0.0.0"), ("--nnodes", "2"), ("--headless",)),
    # what changes answers
    *(("--dtype", "float16"), ("--quantization", "fp8"), ("--kv-cache-dtype", "fp8"), ("--seed", "7")),
    *(("--load-format", "dummy"), ("--tokenizer", "x"), ("--chat-template", "x"), ("--generation-config", "auto")),
    *(("--override-generation-config", "{}"), ("--max-model-len", "8"), ("--speculative-config", "{}")),
    *(("--mm-processor-kwargs", "{}"), ("--limit-mm-per-prompt", "{}"), ("--model", "x"), ("--revision", "x")),
    *(("--tensor-parallel-size", "2"), ("--pipeline-parallel-size", "2"), ("--max-num-seqs", "2")),
    # values
    *(("--block-size",), ("--block-size", "--enforce-eager"), ("--block-size", "17"), ("--block-size", "16 ")),
    *(("--gpu-memory-utilization", "0.85"), ("--enable-sleep-mode",)),  # memory_share and sharing of the engine
    *(("--cpu-offload-gb", "nan"), ("--cpu-offload-gb", "1e0"), ("--cpu-offload-gb", "100001")),
    *(("--cpu-offload-gb", "inf"), ("--cpu-offload-gb", "-1"), ("--max-num-batched-tokens", "0")),
    *(("--max-num-batched-tokens", "1k"), ("--max-num-batched-tokens", "9" * 30), ("--block-size", "\u0661\u0666")),
    *(("--distributed-executor-backend", "a.B"), ("--mm-encoder-tp-mode", "Data"), ("--attention-backend", "CUSTOM")),
)
ACCEPTED = (
    *((), ("--distributed-executor-backend", "ray", "--mm-encoder-tp-mode", "data"), ("--enforce-eager",)),
    *(("--cpu-offload-gb", "0.85", "--max-num-batched-tokens", "8192", "--enable-chunked-prefill"),),
    *(("--cpu-offload-gb", "10", "--enable-prefix-caching", "--block-size", "32", "--mm-processor-cache-gb", "0.5"),),
)


def with_arguments(values: dict[str, Any], args: object) -> dict[str, Any]:
    return merge_params(values, {"runtime": {"engines": {"judge": {"kind": "vllm_server", "args": args}}}})


@pytest.fixture
def values(root: Any) -> dict[str, Any]:
    return read_yaml(root / "params.yaml")


def test_other_arguments_are_refused_when_parameters_are_loaded(values: dict[str, Any]) -> None:
    assert len(set(REFUSED)) == len(REFUSED) > 100
    for args in REFUSED:
        with pytest.raises(ParamsError, match=r"params\.yaml: runtime\.engines\.judge\.args") as caught:
            validate_params(with_arguments(values, list(args)))
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("args", [[16], [None], [["--enforce-eager"]], "--enforce-eager", {"--enforce-eager": 1}, 1])
def test_arguments_are_a_list_of_texts(values: dict[str, Any], args: object) -> None:
    with pytest.raises(ParamsError, match=r"runtime\.engines\.judge\.args"):
        validate_params(with_arguments(values, args))


@pytest.mark.parametrize("args", ACCEPTED)
def test_what_changes_speed_only_passes(values: dict[str, Any], args: tuple[str, ...]) -> None:
    engine = validate_params(with_arguments(values, list(args))).runtime.engines["judge"]
    assert engine.model_dump()["args"] == args


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("--block_size", "write --block-size, and its value as the next entry"),
        ("--block-size=16", "write --block-size, and its value as the next entry"),
        ("--tensor-parallel-size", "set tensor_parallel of this engine instead"),
        ("--dtype", r"set models\.<id>\.precision instead"),
        ("--worker-cls", "these are: .*--enforce-eager"),
    ],
)
def test_the_remedy_is_named(argument: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        check_server_arguments([argument])


def test_a_server_of_the_student_has_no_port(values: dict[str, Any]) -> None:
    changed = merge_params(values, {"runtime": {"engines": {"student": {"kind": "vllm_server", "port": 8000}}}})
    with pytest.raises(ParamsError, match=r"runtime\.engines\.student\.port is 8000; .*remove port"):
        validate_params(changed)


@pytest.mark.slow
def test_vllm_has_every_option_by_this_name() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    actions = make_arg_parser(FlexibleArgumentParser())._actions
    known = {name: action for action in actions for name in action.option_strings}
    for option, value in OPTIONS.items():
        assert option in known, option
        assert (known[option].nargs == 0) == (value is None), option
