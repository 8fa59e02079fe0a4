"""Published config.json of vision-language models that no family here can train; only these files are made.

Their tokenizers cannot be had, so that there are no weights either but one small tensor: `model` has to refuse them by
what config.json says.
"""

from tests.checkpoints.published import Published

_SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "patch_size": 14,
    "vision_use_head": False,
}

REFUSED = (
    Published(
        name="gemma-3-4b-it",
        kind="",
        config={
            "architectures": ["Gemma3ForConditionalGeneration"],
            "boi_token_index": 255999,
            "eoi_token_index": 256000,
            "eos_token_id": [1, 106],
            "image_token_index": 262144,
            "initializer_range": 0.02,
            "mm_tokens_per_image": 256,
            "model_type": "gemma3",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
                "vocab_size": 262208,
            },
            "torch_dtype": "bfloat16",
            "transformers_version": "4.50.0.dev0",
            "vision_config": {**_SIGLIP, "image_size": 896, "num_hidden_layers": 27},
        },
        cut={},
        generation={"bos_token_id": 2, "do_sample": True, "eos_token_id": [1, 106], "pad_token_id": 0},
        inferred="vocab_size, which the published file leaves to the class",
    ),
    Published(
        name="llava-onevision-qwen2-7b-ov-hf",
        kind="",
        config={
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "image_token_index": 151646,
            "model_type": "llava_onevision",
            "projector_hidden_act": "gelu",
            "text_config": {
                "architectures": ["Qwen2ForCausalLM"],
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "max_position_embeddings": 32768,
                "model_type": "qwen2",
                "num_attention_heads": 28,
                "num_hidden_layers": 28,
                "num_key_value_heads": 4,
                "rope_theta": 1000000.0,
                "vocab_size": 152128,
            },
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "video_token_index": 151647,
            "vision_aspect_ratio": "anyres_max_9",
            "vision_config": {**_SIGLIP, "image_size": 384, "num_hidden_layers": 26},
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        cut={},
        generation={"eos_token_id": 151645, "pad_token_id": 151643},
        inferred="all but model_type, image_token_index and the sizes",
    ),
    Published(
        name="SmolVLM-Instruct",
        kind="",
        config={
            "architectures": ["Idefics3ForConditionalGeneration"],
            "image_token_id": 49153,
            "model_type": "idefics3",
            "scale_factor": 3,
            "text_config": {
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "max_position_embeddings": 16384,
                "model_type": "llama",
                "num_attention_heads": 32,
                "num_hidden_layers": 24,
                "num_key_value_heads": 32,
                "vocab_size": 49155,
            },
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vision_config": {"hidden_size": 1152, "image_size": 384, "model_type": "idefics3", "patch_size": 14},
            "vocab_size": 49155,
        },
        cut={},
        generation={"bos_token_id": 1, "eos_token_id": 49154, "pad_token_id": 2},
        inferred="all but model_type and the vocabulary",
    ),
)
