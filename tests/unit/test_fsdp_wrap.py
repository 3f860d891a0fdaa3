"""Wrap policy -> plan: whose rules count, what they match, what is refused. No process group is needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from rlinf.config.schema import FsdpConfig, WrapPolicyConfig
from rlinf.fsdp.wrap import WrapPlan, get_fsdp_wrap_policy
from rlinf.plugins import WrapPolicySpec
from torch import nn


class VisionTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(DecoderLayer() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x)
        for block in self.blocks:
            x = block(x)
        return x


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(self.norm(x))


class Head(nn.Linear):
    _is_policy_head = True


class Backbone(nn.Module):
    _no_split_modules = ("DecoderLayer",)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision = VisionTower()
        self.backbone = Backbone()
        self.state_proj = nn.Linear(5, 4)
        self.value_head = Head(4, 1)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return self.value_head(self.backbone(self.vision(x)) + self.state_proj(state))


def config(**rules: list[str]) -> FsdpConfig:
    return FsdpConfig(wrap_policy=WrapPolicyConfig(**rules))


def names(plan: WrapPlan) -> list[str]:
    return [unit.name for unit in plan.units]


def test_the_models_own_rules_are_found_in_its_backbone() -> None:
    plan = get_fsdp_wrap_policy(FsdpConfig(), Policy())
    layers = [f"backbone.layers.{i}" for i in range(3)]
    assert names(plan) == ["vision.blocks.0", "vision.blocks.1", *layers, "value_head"]
    assert "Backbone (backbone)._no_split_modules: 'DecoderLayer'" in plan.units[2].rule
    assert plan.units[-1].rule == "built in: new head"
    assert plan.remainder == (
        "vision.patch.weight",
        "vision.patch.bias",
        "backbone.embed.weight",
        "backbone.embed.bias",
        "state_proj.weight",
        "state_proj.bias",
    )
    assert plan.remainder_bytes == 4 * (12 + 4 + 16 + 4 + 20 + 4)


def test_plugin_rules_replace_the_models_and_custom_rules_replace_both() -> None:
    plugin = WrapPolicySpec(module_classes_to_wrap=("VisionTower",))
    assert names(get_fsdp_wrap_policy(FsdpConfig(), Policy(), plugin)) == ["vision", "value_head"]
    custom = config(module_classes_to_wrap=["Backbone"])
    assert names(get_fsdp_wrap_policy(custom, Policy(), plugin)) == ["backbone", "value_head"]


def test_small_units_join_the_one_around_them() -> None:
    def units(min_num_params: int) -> list[str]:
        custom = WrapPolicyConfig(module_classes_to_wrap=["VisionTower", "DecoderLayer"])
        return names(
            get_fsdp_wrap_policy(FsdpConfig(wrap_policy=custom, min_num_params=min_num_params), Policy())
        )

    layers = [f"backbone.layers.{i}" for i in range(3)]
    blocks = ["vision.blocks.0", "vision.blocks.1"]
    assert units(5) == ["vision", *blocks, *layers, "value_head"]
    # The head (5 parameters) joins the root; a layer has 28, the tower 16 of its own and then its blocks'.
    assert units(6) == units(16) == ["vision", *blocks, *layers]
    assert units(17) == [*blocks, *layers]
    assert units(29) == ["vision"]
    assert units(73) == []


def test_the_block_of_the_published_documentation() -> None:
    custom = config(
        transformer_layer_cls_to_wrap=["DecoderLayer"],
        module_classes_to_wrap=["VisionTower"],
        no_split_names=["value_head"],
    )
    plan = get_fsdp_wrap_policy(custom, Policy())
    assert names(plan)[0] == "vision" and names(plan)[-1] == "value_head" and len(plan.units) == 7
    assert plan.units[-1].rule == "fsdp_config.wrap_policy.no_split_names: 'value_head'"
    # Inside-out: a unit comes after all units inside it.
    order = [unit.name for unit in plan.application_order]
    assert order.index("vision") > order.index("vision.blocks.0")
    # What inner units took is not counted twice.
    assert plan.units[0].parameters == ("vision.patch.weight", "vision.patch.bias")
    assert plan.units[0].numel == 16 and plan.units[0].nbytes == 64


def test_no_split_names_read_the_marker_and_else_the_attribute_name() -> None:
    model = Policy()
    model.state_proj._fsdp_wrap_name = "projector"  # type: ignore[assignment]
    plan = get_fsdp_wrap_policy(config(no_split_names=["projector", "embed"]), model)
    assert names(plan) == ["backbone.embed", "state_proj", "value_head"]
    with pytest.raises(ValueError, match=r"no_split_names: 'state_proj' matches no module"):
        get_fsdp_wrap_policy(config(no_split_names=["state_proj"]), model)


def wants_projections(path: str, module: nn.Module) -> bool:
    return path.endswith("_proj") and isinstance(module, nn.Linear)


def test_paths_and_predicates_of_a_plugin() -> None:
    spec = WrapPolicySpec(
        module_path_patterns=(r"vision\.blocks\.\d+",), predicates=(f"{__name__}:wants_projections",)
    )
    plan = get_fsdp_wrap_policy(FsdpConfig(), Policy(), spec)
    assert names(plan) == ["vision.blocks.0", "vision.blocks.1", "state_proj", "value_head"]
    with pytest.raises(ValueError, match="module_path_patterns: 'blocks' matches no module"):
        get_fsdp_wrap_policy(FsdpConfig(), Policy(), WrapPolicySpec(module_path_patterns=("blocks",)))


def bad_policies() -> Iterator[tuple[FsdpConfig, WrapPolicySpec | None, str]]:
    typo = config(transformer_layer_cls_to_wrap=["DecoderLayr"])
    yield typo, None, "transformer_layer_cls_to_wrap: 'DecoderLayr' matches no module.*'DecoderLayer'"
    plugin = WrapPolicySpec(module_classes_to_wrap=("Projector",))
    yield (
        FsdpConfig(),
        plugin,
        "plugin's WrapPolicySpec.module_classes_to_wrap: 'Projector' matches no module",
    )
    yield config(module_classes_to_wrap=["ModuleList"]), None, "vision.blocks, a ModuleList without a forward"


@pytest.mark.parametrize(("fsdp_config", "plugin", "message"), list(bad_policies()))
def test_a_rule_that_does_not_fit_is_named(
    fsdp_config: FsdpConfig, plugin: WrapPolicySpec | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        get_fsdp_wrap_policy(fsdp_config, Policy(), plugin)


def test_a_rule_of_the_model_that_matches_nothing_is_named() -> None:
    model = Policy()
    model._no_split_modules = ["Gone"]  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"Policy\._no_split_modules: 'Gone' matches no module of Policy"):
        get_fsdp_wrap_policy(FsdpConfig(), model)


def test_modules_without_parameters_cannot_be_units() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.GELU())
    with pytest.raises(ValueError, match="matches only modules without parameters: 1"):
        get_fsdp_wrap_policy(config(module_classes_to_wrap=["GELU"]), model)


def test_tied_parameters_stay_in_one_unit() -> None:
    model = Policy()
    model.backbone.layers[0].linear.weight = model.backbone.embed.weight  # type: ignore[union-attr]
    with pytest.raises(
        ValueError, match=r"embed\.weight and .*layers\.0\.linear\.weight are one tied parameter"
    ):
        get_fsdp_wrap_policy(FsdpConfig(), model)
    plan = get_fsdp_wrap_policy(config(module_classes_to_wrap=["Backbone"]), model)
    assert plan.units[0].parameters.count("backbone.embed.weight") == 1


def test_scalars_and_mixed_trainable_dtypes_are_refused_and_frozen_ones_are_not() -> None:
    scalar = Policy()
    scalar.log_std = nn.Parameter(torch.tensor(0.0))
    with pytest.raises(ValueError, match="log_std is a scalar parameter"):
        get_fsdp_wrap_policy(FsdpConfig(), scalar)
    mixed = Policy()
    mixed.backbone.layers[1].norm.to(torch.bfloat16)  # type: ignore[union-attr]
    with pytest.raises(
        ValueError, match=r"unit backbone\.layers\.1 mixes .*bfloat16 .*float32|float32.*bfloat16"
    ):
        get_fsdp_wrap_policy(FsdpConfig(), mixed)
    mixed.backbone.layers[1].norm.requires_grad_(False)  # type: ignore[union-attr]
    assert get_fsdp_wrap_policy(FsdpConfig(), mixed).units


def test_the_digest_depends_on_all_that_ranks_must_share_and_on_nothing_else() -> None:
    base = get_fsdp_wrap_policy(FsdpConfig(), Policy()).digest
    assert get_fsdp_wrap_policy(FsdpConfig(), Policy()).digest == base, "random weights do not count"
    with torch.device("meta"):
        assert get_fsdp_wrap_policy(FsdpConfig(), Policy()).digest == base
    frozen = Policy()
    frozen.state_proj.requires_grad_(False)
    others = [
        get_fsdp_wrap_policy(config(module_classes_to_wrap=["DecoderLayer"]), Policy()).digest,
        get_fsdp_wrap_policy(FsdpConfig(), frozen).digest,
        get_fsdp_wrap_policy(FsdpConfig(), Policy().to(torch.bfloat16)).digest,
    ]
    assert len({base, *others}) == 4
