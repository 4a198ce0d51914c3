"""Our step computes what the authors' release computes: the same weights and inputs, in float64."""

import json
import math
from pathlib import Path

import pytest
import torch

from dgnet_core.dgnet.config import DGNetConfig, LossConfig, RecipeConfig
from dgnet_core.dgnet.release import release_name, release_state_dicts
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step
from dgnet_core.learning.batches import Batch, Position
from dgnet_core.learning.config import AugmentConfig, StepConfig, Warmup
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.teacher.networks import Teacher
from tests.core.reference.formulas import fill, step_inputs

REFERENCE = json.loads(Path(__file__).with_name("reference").joinpath("step.json").read_text())
CLASSES, BATCH = REFERENCE["classes"], REFERENCE["batch"]

# Our term = sum of the release's two halves.
LOSSES = {
    "L_img1": ("gen_recon_x_a", "gen_recon_x_b"),
    "L_img2": ("gen_recon_xp_a", "gen_recon_xp_b"),
    "L_c_id": ("gen_recon_id",),
    "L_adv": ("gen_adv_a", "gen_adv_b"),
    "L_s_id_positive": ("pid",),
    "L_code1": ("gen_recon_f_a", "gen_recon_f_b"),
    "L_code2": ("gen_recon_s_a", "gen_recon_s_b"),
    "L_cyc": ("gen_cycrecon_x_a", "gen_cycrecon_x_b"),
}


def config_of(case: str) -> DGNetConfig:
    # The release's ramps stood at other values than its slopes give: a maximum stops ours at the same ones.
    warmup = Warmup(start=29_999)
    ramped = LossConfig(
        code_warmup=warmup, teacher_warmup=warmup, appearance_code=0.5005, structure_code=0.5005, cycle=1.0005
    )
    return DGNetConfig(
        num_classes=CLASSES,
        batch_size=BATCH,
        network=NetworkConfig(
            height=REFERENCE["height"], width=REFERENCE["width"], pretrained="none", prim_dropout=0, fine_dropout=0
        ),
        loss=LossConfig() if case == "before_warmup" else ramped,
        recipe=RecipeConfig(reencode_probability=0.0 if case == "ramp_encoder_frozen" else 1.0),
        augment=AugmentConfig(flip=0, pad=0, erase=0),
        step=StepConfig(precision="float64"),
    )


def state_of(case: str, config: DGNetConfig) -> TrainState:
    state = TrainState.build(config, teacher=Teacher(config.network, CLASSES, dropout=0.0))
    assert state.teacher is not None
    for network, module in {**state.networks, "teacher": state.teacher}.items():
        for name, value in module.state_dict().items():
            part, theirs = release_name(f"{network}.{name}")
            value.copy_(torch.from_numpy(fill(f"{part}.{theirs}", tuple(value.shape))))
    state.iteration = REFERENCE["cases"][case]["iteration"]
    return state


def inputs(state: TrainState) -> Batch:
    x = step_inputs(REFERENCE["input_seed"], BATCH, CLASSES, REFERENCE["height"], REFERENCE["width"])
    images = torch.stack([torch.from_numpy(x[name]).double() for name in ("x_a", "x_b", "xp_a", "xp_b")])
    labels = torch.stack([torch.from_numpy(x[name]).long() for name in ("l_a", "l_b")])
    return Batch(images=images, erased=None, labels=labels, position=Position(seed=0, iteration=state.iteration))


# Without the structure encoder's gradient: test_step.py compares merged passes with separate ones in both cases.
LONG = {"ramp_encoder_frozen": pytest.mark.long}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", [pytest.param(case, marks=LONG.get(case, ())) for case in REFERENCE["cases"]])
def test_step_equals_the_release(case: str) -> None:
    config = config_of(case)
    state = state_of(case, config)
    unused = {name: shape for name, shape in REFERENCE["state_dict"]["id"].items() if name.startswith("model.fc.")}
    unused = [torch.from_numpy(fill(f"id.{name}", shape)).double() for name, shape in unused.items()]
    for number, expected in enumerate(REFERENCE["cases"][case]["steps"]):
        metrics = train_step(state, inputs(state), config)

        tolerance = 1e-8 if number == 0 else 1e-6
        close = lambda value, rel=tolerance: pytest.approx(value, rel=rel)  # noqa: E731
        theirs = expected["losses"]
        for ours, halves in LOSSES.items():
            if ours in metrics:
                assert float(metrics[ours]) == close(sum(theirs[half] for half in halves)), ours
            else:
                assert all(theirs[half] == 0 for half in halves), ours
        penalised = metrics["D_adv"] + config.loss.gradient_penalty * metrics["D_penalty"]
        assert float(penalised) == close(theirs["dis_total"])
        fine_real = 0.0 if case == "before_warmup" else 0.2
        assert float(metrics["L_s_id"] + fine_real * metrics.get("L_s_id_fine", 0)) == close(theirs["id"])
        fed = metrics.get("L_prim", torch.zeros(())) + config.loss.alpha * metrics.get("L_fine", 0)
        assert float(fed) == close(theirs["teacher"])

        # Every tensor's gradient.
        seen = set()
        for network, module in state.networks.items():
            for name, parameter in module.named_parameters():
                part, theirs_name = release_name(f"{network}.{name}")
                assert parameter.grad is not None
                norm = float(parameter.grad.norm())
                tensor = f"{part}.{theirs_name}"
                assert norm == pytest.approx(expected["grad_l2_by_tensor"][tensor], rel=1e-6, abs=1e-8), tensor
                seen.add(tensor)
        missing = {name for name, norm in expected["grad_l2_by_tensor"].items() if norm} - seen
        assert not missing

        # All parameters after the optimisers' step.
        parts = {"gen": [], "id": list(unused), "dis": []}
        for network, module in state.networks.items():
            part = {"appearance_encoder": "id", "discriminator": "dis"}.get(network, "gen")
            parts[part] += [p.detach() for p in module.parameters()]
        for part, tensors in parts.items():
            after = expected["after_step"][part]
            assert sum(t.numel() for t in tensors) == after["count"]
            assert float(sum(t.sum() for t in tensors)) == pytest.approx(after["sum"], rel=1e-7, abs=1e-4)
            assert float(sum(t.abs().sum() for t in tensors)) == pytest.approx(after["abs_sum"], rel=1e-10)
            assert math.sqrt(float(sum(t.square().sum() for t in tensors))) == pytest.approx(after["l2"], rel=1e-10)


def test_networks_compute_the_outputs_of_the_release() -> None:
    config = config_of("before_warmup")
    state = state_of("before_warmup", config)
    x = inputs(state).images[:, :2]  # instance norms and BatchNorm statistics: only the whole batch has the release's
    expected = REFERENCE["cases"]["before_warmup"]["steps"][0]["outputs"]
    with torch.no_grad():
        structure = state.structure_encoder(x[0].mean(dim=1, keepdim=True))
        code = state.appearance_encoder(inputs(state).images[0])
        image = state.decoder(structure, code[:2])
    for ours, theirs in ((structure, "s_a"), (code.flatten(1), "f_a"), (image, "x_a_recon")):
        assert ours.shape[1:] == tuple(expected[theirs]["shape"][1:])
        torch.testing.assert_close(ours.flatten()[:4].tolist(), expected[theirs]["first"], rtol=1e-6, atol=1e-7)


def test_tensors_have_the_names_and_shapes_of_the_release() -> None:
    config = config_of("before_warmup")
    state = TrainState.build(config, teacher=Teacher(config.network, CLASSES))
    assert state.teacher is not None
    written = release_state_dicts({**state.networks, "teacher": state.teacher})
    shapes = {part: {name: list(value.shape) for name, value in tensors.items()} for part, tensors in written.items()}
    assert shapes == REFERENCE["state_dict"]
