"""Real pipelines of diffusers, tiny and with random weights, saved in the layout of a hub."""

import json
import string
from pathlib import Path
from typing import Any

LETTERS = [*string.ascii_lowercase, " ", ",", "."]


def clip_tokenizer(folder: Path) -> Any:
    """Return a CLIP tokenizer that knows only letters."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)


def t5_tokenizer() -> Any:
    """Return a T5 tokenizer that knows only letters."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return T5Tokenizer(vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)], extra_ids=0)


def save_stable_diffusion(folder: Path) -> Path:
    """Save a StableDiffusionPipeline: 16 pixels per side with latents of 8."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, attention_head_dim=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=60, max_position_embeddings=24, **sizes, **special)).eval()
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=clip_tokenizer(folder / "words"), unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def save_deepfloyd(folder: Path) -> tuple[Path, Path]:
    """Save an IFPipeline at 8 pixels per side and an IFSuperResolutionPipeline at 16, which shares the T5 of the first."""
    import torch
    from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(2)
    text = T5EncoderModel(T5Config(vocab_size=40, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)).eval()

    def unet(channels: int, size: int, **more: Any) -> Any:
        return UNet2DConditionModel(
            sample_size=size, in_channels=channels, out_channels=6, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            cross_attention_dim=32, encoder_hid_dim=12, attention_head_dim=8, addition_embed_type="text",
            addition_embed_type_num_heads=2, cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift",
            act_fn="gelu", **more,
        ).eval()  # fmt: skip

    def noise() -> Any:
        return DDPMScheduler(variance_type="learned_range", thresholding=True, prediction_type="epsilon")

    tokenizer = t5_tokenizer()
    first = IFPipeline(
        tokenizer=tokenizer, text_encoder=text, unet=unet(3, 8), scheduler=noise(), safety_checker=None, feature_extractor=None,
        watermarker=None, requires_safety_checker=False,
    )  # fmt: skip
    second = IFSuperResolutionPipeline(
        tokenizer=None, text_encoder=None, unet=unet(6, 16, class_embed_type="timestep", time_embedding_act_fn="gelu"),
        scheduler=noise(), image_noising_scheduler=DDPMScheduler(), safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip
    first.save_pretrained(folder / "first")
    second.save_pretrained(folder / "second")
    return folder / "first", folder / "second"
