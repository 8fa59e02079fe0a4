"""Tokenizers of the tiny models: byte-level BPE made here, with the families' real special tokens and chat templates.

The templates are written anew after the published behaviour: Qwen2.5 puts a default system turn in front, InternVL3
does not; images stand as one placeholder each, which processor or engine expand.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
INTERNVL_SPECIAL = (
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<video>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)

_TURNS = (
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
)
_END = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
)


def make_chat_template(image: str, default_system: bool) -> str:
    """A Jinja chat template in which an image is written as `image`."""
    turns = (_SYSTEM if default_system else "") + _TURNS.replace("IMAGE", image)
    return "{% for message in messages %}" + turns + "{% endfor %}" + _END


def train_tokenizer(texts: Sequence[str], vocabulary: int, template: str, **named: str) -> Qwen2Tokenizer:
    """A Qwen2 tokenizer whose merges were learned from `texts`; equal texts give an equal tokenizer.

    `named` are special tokens that the family's processor looks up by name. Ids: bytes and merges first, special tokens
    last.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    empty = Qwen2Tokenizer(vocab={}, merges=[])
    learner = Tokenizer(models.BPE())
    learner.normalizer = empty._tokenizer.normalizer
    learner.pre_tokenizer = empty._tokenizer.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    learner.train_from_iterator(texts, trainer)
    import json

    model = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    special = [*QWEN_SPECIAL, *(INTERNVL_SPECIAL if named else ())]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        **({"extra_special_tokens": named} if named else {}),
    )
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer
