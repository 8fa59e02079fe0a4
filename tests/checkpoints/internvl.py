"""Published files of InternVL3 (-hf) and of the dense InternVL3.5 (-HF)."""

from tests.checkpoints.published import INTERNVL3_TOKENS, QWEN3_TOKENS, TEXT_CUT, Json, Published
from tests.checkpoints.templates import INTERNVL3

_VISION: Json = {
    "architectures": ["InternVisionModel"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 1024,
    "image_size": [448, 448],
    "initializer_factor": 0.1,
    "initializer_range": 1e-10,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-06,
    "layer_scale_init_value": 0.1,
    "model_type": "internvl_vision",
    "norm_type": "layer_norm",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": [14, 14],
    "projection_dropout": 0.0,
    "torch_dtype": "bfloat16",
    "use_absolute_position_embeddings": True,
    "use_mask_token": False,
    "use_mean_pooling": True,
    "use_qk_norm": False,
}
_LARGE_VISION: Json = {
    "attention_bias": False,
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "norm_type": "rms_norm",
    "num_attention_heads": 25,
    "num_hidden_layers": 45,
    "use_qk_norm": True,
}
_CUT: Json = {
    **{f"text_config.{key}": value for key, value in TEXT_CUT.items()},
    "vision_config.hidden_size": 64,
    "vision_config.intermediate_size": 128,
    "vision_config.num_attention_heads": 2,
    "vision_config.num_hidden_layers": 2,
}
_IMAGES: Json = {
    "crop_size": None,
    "crop_to_patches": False,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "do_center_crop": None,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "image_std": [0.229, 0.224, 0.225],
    "input_data_format": None,
    "max_patches": 12,
    "min_patches": 1,
    "processor_class": "InternVLProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "return_tensors": None,
    "size": {"height": 448, "width": 448},
}
_TOKENIZER: Json = {
    "context_image_token": "<IMG_CONTEXT>",
    "end_image_token": "</img>",
    "extra_special_tokens": {
        "context_image_token": "<IMG_CONTEXT>",
        "end_image_token": "</img>",
        "start_image_token": "<img>",
        "video_token": "<video>",
    },
    "model_max_length": 8192,
    "processor_class": "InternVLProcessor",
    "start_image_token": "<img>",
    "video_token": "<video>",
    "chat_template": None,
}
# By name of InternVL3, then of InternVL3.5: hidden, intermediate, layers, heads, key-value heads of the language model.
_SIZES = {
    "InternVL3-1B-hf": (896, 4864, 24, 14, 2),
    "InternVL3-2B-hf": (1536, 8960, 28, 12, 2),
    "InternVL3-8B-hf": (3584, 18944, 28, 28, 4),
    "InternVL3-78B-hf": (8192, 29568, 80, 64, 8),
    "InternVL3_5-1B-HF": (1024, 3072, 28, 16, 8),
    "InternVL3_5-8B-HF": (4096, 12288, 36, 32, 8),
}


def _list_shape(name: str) -> Json:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return dict(zip(names, _SIZES[name], strict=True))


def _describe(
    name: str, text: Json, vision: Json, tokens: tuple[str, ...], image_token: int, inferred: str
) -> Published:
    config = {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": 256,
        "image_token_id": image_token,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0.dev0",
        "vision_config": {**_VISION, **vision},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }
    return Published(
        name=name,
        kind="InternVLForConditionalGeneration",
        config=config,
        cut=_CUT,
        generation={"_from_model_config": True, "eos_token_id": 151645, "transformers_version": "4.52.0.dev0"},
        files={
            "preprocessor_config.json": _IMAGES,
            "processor_config.json": {"image_seq_length": 256, "processor_class": "InternVLProcessor"},
            "chat_template.jinja": INTERNVL3,
        },
        plain_tokens=tokens,
        special_tokens=INTERNVL3_TOKENS,
        tokenizer=_TOKENIZER,
        inferred=inferred,
    )


def _describe_internvl3(name: str) -> Published:
    """InternVL3: `<video>` is token 151674 of the tokenizer, while the embeddings have 151,674 rows: 0 to 151673."""
    text = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "max_window_layers": 70,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151674,
        **_list_shape(name),
    }
    vision = _LARGE_VISION if "78B" in name else {}
    seen = name in ("InternVL3-2B-hf", "InternVL3-8B-hf")
    why = "generation_config.json, max_window_layers, eos_token_id of text_config"
    return _describe(name, text, vision, (), 151667, why if seen else f"{why}, vocab_size, the large tower's keys")


def _describe_internvl3_5(name: str) -> Published:
    """The dense InternVL3.5: a Qwen3 language model."""
    text = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "model_type": "qwen3",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
        **_list_shape(name),
    }
    return _describe(name, text, {}, QWEN3_TOKENS, 151671, "all but the sizes of the published Qwen3 models")


INTERNVL = (
    *(_describe_internvl3(name) for name in _SIZES if name.startswith("InternVL3-")),
    *(_describe_internvl3_5(name) for name in _SIZES if name.startswith("InternVL3_5-")),
)
