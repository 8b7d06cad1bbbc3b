"""Networks of Hugging Face's transformers, from configurations of a few channels."""

from collections.abc import Callable
from typing import Any

from torch import nn

from tests.networks.entry import Entry


def model(name: str, config: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    """The network of this name; `config` makes its configuration from the library."""

    def make() -> nn.Module:
        import transformers

        return getattr(transformers, name)(config(transformers))

    return make


def upernet(backbone: Callable[[Any], Any], auxiliary: int) -> Callable[[], nn.Module]:
    return model(
        "UperNetForSemanticSegmentation",
        lambda hf: hf.UperNetConfig(
            backbone_config=backbone(hf), hidden_size=12, pool_scales=[1, 2], auxiliary_in_channels=auxiliary,
            auxiliary_channels=8, num_labels=3,
        ),
    )  # fmt: skip


def vision(name: str) -> Callable[[Any], Any]:
    """BEiT, and Data2Vec with the same options: a plain transformer with four maps made from its layers."""
    return lambda hf: getattr(hf, name)(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=64, patch_size=16,
        out_indices=[1, 2, 3, 4], pool_scales=[1, 2], num_labels=3, auxiliary_channels=8, num_channels=3,
        use_absolute_position_embeddings=True,
    )  # fmt: skip


def convnext(hf: Any) -> Any:
    return hf.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], out_features=STAGES)


def swin(hf: Any) -> Any:
    return hf.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, image_size=64, out_features=STAGES
    )


def mask2former(hf: Any) -> Any:
    return hf.Mask2FormerConfig(
        backbone_config=swin(hf), hidden_dim=32, feature_size=32, mask_feature_size=32, num_queries=5, num_labels=3,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, encoder_feedforward_dim=16,
    )  # fmt: skip


def maskformer(hf: Any) -> Any:
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=STAGES
    )
    decoder = hf.DetrConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=5,
    )  # fmt: skip
    return hf.MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, num_labels=3
    )


STAGES = ["stage1", "stage2", "stage3", "stage4"]
SEMANTIC = {"size": (64, 64), "channels": 3, "logits": lambda output: output.logits}
QUERIES = {"size": (64, 64), "channels": 3, "logits": None}  # masks of queries: no map of classes comes out
HUGGING_FACE = {
    "HF SegFormer": Entry(
        model(
            "SegformerForSemanticSegmentation",
            lambda hf: hf.SegformerConfig(
                depths=[1, 1, 1, 1],
                hidden_sizes=[8, 16, 24, 32],
                num_attention_heads=[1, 1, 2, 2],
                decoder_hidden_size=20,
                num_labels=3,
            ),
        ),
        "4:8 8:16 16:24 32:32",
        "4:20",
        **SEMANTIC,
    ),
    "HF UperNet, ConvNeXt": Entry(
        upernet(convnext, 24),
        "4:8 8:16 16:24 32:12",
        "16:12 8:12 4:12",
        **SEMANTIC,
    ),
    "HF UperNet, Swin": Entry(
        upernet(swin, 32),
        "4:8 8:16 16:32 32:12",
        "16:12 8:12 4:12",
        **{**SEMANTIC, "size": (128, 128)},
    ),
    "HF BEiT": Entry(
        model("BeitForSemanticSegmentation", vision("BeitConfig")),
        "4:16 8:16 16:16 32:16",
        "16:16 8:16 4:16",
        **SEMANTIC,
    ),
    "HF Data2Vec": Entry(
        model("Data2VecVisionForSemanticSegmentation", vision("Data2VecVisionConfig")),
        "4:16 8:16 16:16 32:16",
        "16:16 8:16 4:16",
        **SEMANTIC,
    ),
    "HF DPT": Entry(
        model(
            "DPTForSemanticSegmentation",
            lambda hf: hf.DPTConfig(
                hidden_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                intermediate_size=16,
                image_size=64,
                patch_size=16,
                backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[8, 12, 16, 20],
                fusion_hidden_size=24,
                num_labels=3,
                auxiliary_loss_weight=0.4,
            ),
        ),
        "4:24 8:24 16:24 32:24",
        "16:24 8:24 4:24 2:24",
        **SEMANTIC,
    ),
    "HF MobileViT": Entry(
        model(
            "MobileViTForSemanticSegmentation",
            lambda hf: hf.MobileViTConfig(
                hidden_sizes=[8, 12, 16],
                neck_hidden_sizes=[4, 8, 12, 16, 20, 24, 32],
                num_attention_heads=2,
                aspp_out_channels=12,
                num_labels=3,
                image_size=64,
                output_stride=8,
            ),
        ),
        "2:8 4:12 8:24",
        "",
        **SEMANTIC,
        revised="The pyramid (12 channels) was expected as the bottom; it lies inside the head.",
    ),
    "HF MobileViTV2": Entry(
        model(
            "MobileViTV2ForSemanticSegmentation",
            lambda hf: hf.MobileViTV2Config(
                width_multiplier=0.25,
                base_attn_unit_dims=[32, 48, 64],
                n_attn_blocks=[1, 1, 1],
                aspp_out_channels=12,
                num_labels=3,
                image_size=64,
            ),
        ),
        "2:16 4:32 8:64 16:96 32:128",
        "",
        **SEMANTIC,
        revised="The pyramid (12 channels) was expected as the bottom; it lies inside the head.",
    ),
    "HF MaskFormer": Entry(
        model("MaskFormerForInstanceSegmentation", maskformer), "2:8 4:8 8:16 16:24 32:32", "16:32 8:32 4:32", **QUERIES
    ),
    "HF Mask2Former": Entry(
        model("Mask2FormerForUniversalSegmentation", mask2former),
        tuple(f"model.pixel_level_module.encoder.hidden_states_norms.stage{i}" for i in range(1, 5)),
        ("model.pixel_level_module.decoder.mask_projection",),
        **QUERIES,
    ),
}
