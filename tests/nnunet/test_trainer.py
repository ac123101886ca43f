"""The trainers do in nnU-Net what the authors' do: network, optimizer, five heads, UpKern; and the whole chain runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.nnunet import DATASET, DATASET_JSON, NnunetFolders, make_plans, needs_nnunet, write_nnunet_checkpoint

from mednext_monai import bundles
from mednext_monai.data import training_cases
from mednext_monai.networks import create_mednext
from mednext_monai.nnunet import TRAINER_FOLDER
from mednext_monai.nnunet.names import TRAINERS
from mednext_monai.weights import check_fold, convert, read_settings, upkern, write_checkpoint

pytestmark = needs_nnunet
PLANS = "nnUNetPlansMedNeXt"
CPU = torch.device("cpu")


@pytest.fixture
def trainers(tmp_path, monkeypatch):
    """The module of the trainers, with nnU-Net's folders set."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    from mednext_monai.nnunet import trainer

    return trainer


def narrow(trainers, base: type | None = None, **attributes) -> type:
    """Return a trainer of a narrow network."""
    base = base or trainers.nnUNetTrainerMedNeXt

    def network_options(cls):
        return {"base_channels": 4}

    return type("Narrow", (base,), {"network_options": classmethod(network_options), **attributes})


def start(trainer: type, plans: dict | None = None, initialize: bool = True):
    """Return a trainer as ``nnUNetv2_train`` makes it."""
    plans = {**(plans or make_plans()), "continue_training": False}
    made = trainer(plans=plans, configuration="3d_fullres", fold=0, dataset_json=DATASET_JSON, device=CPU)
    folder = made.preprocessed_dataset_folder
    os.makedirs(folder, exist_ok=True)
    open(f"{folder}/case_0.b2nd", "wb").close()  # tells nnU-Net in which format the cases are
    if initialize:
        made.initialize()
    return made


@pytest.mark.parametrize("name", ["nnUNetTrainerMedNeXt", *TRAINERS])
def test_nnunet_finds_every_trainer_in_the_folder_of_the_command(trainers, monkeypatch, name):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", TRAINER_FOLDER)
    found = recursive_find_trainer_class_by_name(name)
    assert found is getattr(trainers, name) and found.__name__ == name
    if name in TRAINERS:
        assert (found.variant, found.kernel_size, found.learning_rate) == TRAINERS[name]


def test_optimizer_schedule_and_loss_are_the_published_ones(trainers):
    trainer = start(narrow(trainers, trainers.nnUNetTrainerMedNeXt_B_kernel5_lr_5e_4))
    (group,) = trainer.optimizer.param_groups
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert (group["lr"], group["eps"], group["weight_decay"], group["betas"]) == (5e-4, 1e-4, 3e-5, (0.9, 0.999))
    assert len(group["params"]) == len(list(trainer.network.parameters()))
    trainer.lr_scheduler.step(250)
    assert group["lr"] == pytest.approx(5e-4 * 0.75**0.9)
    np.testing.assert_allclose(trainer.loss.weight_factors, np.array([16, 8, 4, 2, 1]) / 31)
    assert trainer._get_deep_supervision_scales() == [[s] * 3 for s in (1, 0.5, 0.25, 0.125, 0.0625)]


def test_a_step_trains_all_heads_and_a_validation_step_needs_no_other_mode(trainers):
    trainer = start(narrow(trainers))
    shapes = [(16, 32, 48), (8, 16, 24), (4, 8, 12), (2, 4, 6), (1, 2, 3)]
    batch = {"data": torch.randn(2, 2, 16, 32, 48), "target": [torch.randint(0, 3, (2, 1, *s)) for s in shapes]}
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.on_train_epoch_start()
    trainer.train_step(batch)
    after = trainer.network.state_dict()
    for head in range(5):
        assert not torch.equal(before[f"out_{head}.conv_out.weight"], after[f"out_{head}.conv_out.weight"])
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        result = trainer.validation_step({**batch, "target": [t.clone() for t in batch["target"]]})
        losses = [trainer.loss.loss(o, t) for o, t in zip(trainer.network(batch["data"]), batch["target"])]
    weighted = sum(w * loss for w, loss in zip((16 / 31, 8 / 31, 4 / 31, 2 / 31, 1 / 31), losses))
    np.testing.assert_allclose(result["loss"], weighted, rtol=1e-5)
    assert result["tp_hard"].shape == (2,)


def test_two_dimensional_configurations_are_trained_too(trainers):
    plans = make_plans(patch_size=[16, 32], spacing=[1.0, 1.0])
    trainer = start(narrow(trainers), plans)
    scales = trainer._get_deep_supervision_scales()
    targets = [torch.randint(0, 3, (2, 1, *(int(s * n) for s, n in zip(scale, (16, 32))))) for scale in scales]
    trainer.on_train_epoch_start()
    result = trainer.train_step({"data": torch.randn(2, 2, 16, 32), "target": targets})
    assert trainer.network.spatial_dims == 2 and np.isfinite(result["loss"])


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "compiled"])
def test_deep_supervision_is_switched_in_the_network_itself(trainers, wrapped):
    trainer = start(narrow(trainers))
    inner = trainer.network
    if wrapped:
        trainer.network = torch.compile(inner, backend="eager")
    image = torch.randn(1, 2, 16, 16, 32)
    outputs = []
    for enabled in (True, False, True):
        trainer.set_deep_supervision_enabled(enabled)
        outputs.append(trainer.network(image))
    assert [len(o) if isinstance(o, tuple) else o.shape for o in outputs] == [5, (1, 3, 16, 16, 32), 5]
    trainer.network.eval()
    assert trainer.network(image).shape == (1, 3, 16, 16, 32)
    assert set(inner.state_dict()) >= {f"out_{head}.conv_out.weight" for head in range(5)}


def test_the_network_for_prediction_has_all_heads_too(trainers):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(make_plans())
    for name in ("nnUNetTrainerMedNeXt_S_kernel3", "nnUNetTrainerMedNeXt_M_kernel5_lr_1e_4"):
        trainer, settings = getattr(trainers, name), TRAINERS[name]
        configuration = manager.get_configuration("3d_fullres")
        with torch.device("meta"):
            network = trainer.build_network_architecture(manager, configuration, 2, 3, enable_deep_supervision=False)
            expected = create_mednext(settings.variant, settings.kernel_size, 3, 2, 3, deep_supervision=True)
        assert {k: v.shape for k, v in network.state_dict().items()} == {
            k: v.shape for k, v in expected.state_dict().items()
        }
        assert not network.deep_supervision


@pytest.mark.parametrize("patch", [[40, 56, 40], [64, 64, 72]])
def test_a_patch_that_does_not_fit_is_refused_by_name_before_anything_is_written(trainers, tmp_path, patch):
    with pytest.raises(
        ValueError, match=rf"'nnUNetPlansMedNeXt' have patches of \{patch}.*in 3d_fullres.* 16: make plans"
    ):
        start(trainers.nnUNetTrainerMedNeXt_S_kernel3, make_plans(patch_size=patch))
    assert not list((tmp_path / "nnUNet_results").iterdir())


def test_pretrained_weights_of_a_smaller_kernel_are_interpolated(trainers, tmp_path):
    from nnunetv2.run import run_training

    torch.manual_seed(1)
    small = create_mednext("S", 3, 3, 2, 3, deep_supervision=True, base_channels=4)
    source = write_nnunet_checkpoint(tmp_path / "k3.pth", small)
    trainer = start(narrow(trainers, kernel_size=5))
    run_training.load_pretrained_weights(trainer.network, str(source), verbose=True)
    expected = create_mednext("S", 5, 3, 2, 3, deep_supervision=True, base_channels=4)
    upkern(small, expected)
    found = trainer.network.state_dict()
    assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in expected.state_dict().items())
    assert "UpKern" in open(trainer.log_file).read()


def test_pretrained_weights_of_a_bundle_are_reordered_and_heads_of_other_classes_left_out(trainers, tmp_path):
    from nnunetv2.run import run_training

    torch.manual_seed(1)
    other = create_mednext("S", 3, 3, 2, 5, deep_supervision=True, base_channels=4)
    write_checkpoint(other.state_dict(), tmp_path / "model.pt")
    trainer = start(narrow(trainers), make_plans((1, 2, 0)))
    heads = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items() if name.startswith("out_")}
    run_training.load_pretrained_weights(trainer.network, str(tmp_path / "model.pt"))
    found, weight = trainer.network.state_dict(), "enc_block_0.0.conv1.weight"
    # axes of the array: z, y, x, of which the plans make x, z, y
    assert trainer.plans_manager.transpose_forward == [2, 0, 1]
    assert torch.equal(found[weight], other.state_dict()[weight].permute(0, 1, 2, 4, 3))
    assert all(torch.equal(found[name], tensor) for name, tensor in heads.items())
    wide = create_mednext("S", 3, 3, 2, 3, deep_supervision=True, base_channels=8)
    write_checkpoint(wide.state_dict(), tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"-pretrained_weights .*wide\.pt: .*does not match"):
        run_training.load_pretrained_weights(trainer.network, str(tmp_path / "wide.pt"))


def test_the_network_of_another_trainer_is_left_to_nnunets_own_function(trainers, tmp_path):
    from nnunetv2.run import run_training

    start(narrow(trainers))
    layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    torch.save({"network_weights": other.state_dict()}, tmp_path / "other.pth")
    run_training.load_pretrained_weights(layer, str(tmp_path / "other.pth"))
    assert torch.equal(layer.weight, other.weight)


def test_a_checkpoint_is_loaded_for_prediction_and_becomes_weights_of_a_bundle(trainers, tmp_path, monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = start(narrow(trainers))
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    monkeypatch.setattr(trainers.nnUNetTrainer, "do_split", lambda self: (["a", "b"], ["c"]))
    trainer.do_split()
    model = tmp_path / "model"
    (model / "fold_0").mkdir(parents=True)
    trainer.save_checkpoint(str(model / "fold_0/checkpoint_final.pth"))
    (model / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (model / "dataset.json").write_text(json.dumps(DATASET_JSON))
    find = "nnunetv2.inference.predict_from_raw_data.recursive_find_trainer_class_by_name"
    monkeypatch.setattr(find, lambda name: type(trainer))
    # without the Gaussian, whose smallest weights nnU-Net rounds to half precision
    predictor = nnUNetPredictor(device=CPU, use_mirroring=False, use_gaussian=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    image = torch.randn(2, 16, 32, 48)
    theirs = predictor.predict_logits_from_preprocessed_data(image)
    convert(model / "fold_0/checkpoint_final.pth", tmp_path / "model.pt")
    network = create_mednext("S", 3, 3, 2, 3, deep_supervision=True, base_channels=4).eval()
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    with torch.inference_mode():
        ours = network(image.permute(0, 3, 2, 1)[None])[0].permute(0, 3, 2, 1)
    torch.testing.assert_close(theirs.float(), ours, rtol=2e-3, atol=2e-3)  # half precision
    with pytest.raises(ValueError, match=r"2 of the 2 cases to evaluate are its training cases"):
        check_fold(tmp_path / "model.pt", 1, [{"id": "a"}, {"id": "b"}])


@pytest.mark.slow
def test_train_upkern_predict_and_deploy_as_a_user_types_it(tmp_path):
    folders, bundle = NnunetFolders(tmp_path), bundles.copy("mednext_s_k3", tmp_path / "bundles")
    out = folders.run("mednext", "nnunet", "plan", 901, "--patch_size", 32, "--processes", 1)
    assert "nnUNetv2_preprocess -d 901 -plans_name nnUNetPlansMedNeXt -c 3d_fullres" in out
    folders.run("nnUNetv2_preprocess", "-d", 901, "-plans_name", PLANS, "-c", "3d_fullres", "-np", 1)
    train = ["nnUNetv2_train", 901, "3d_fullres", 0, "-p", PLANS, "-device", "cpu", "-tr"]
    log = folders.run(*train, "nnUNetTrainerMedNeXtShort_kernel3")
    assert "Epoch 1" in log and "Mean Validation Dice" in log
    trained = folders.model("nnUNetTrainerMedNeXtShort_kernel3", PLANS) / "fold_0" / "checkpoint_final.pth"
    log = folders.run(*train, "nnUNetTrainerMedNeXtShort_kernel5", "-pretrained_weights", trained)
    assert "kernels interpolated" in log and "Mean Validation Dice" in log
    log = folders.run(*train, "nnUNetTrainerMedNeXtShort_kernel3", "--val")
    assert "Epoch" not in log and "Mean Validation Dice" in log

    model = ["-d", 901, "-c", "3d_fullres", "-p", PLANS, "-tr", "nnUNetTrainerMedNeXtShort_kernel3", "-f", 0]
    arguments = ["-i", folders.images, "-o", tmp_path / "theirs", *model, "-device", "cpu", "-npp", 1, "-nps", 1]
    folders.run("nnUNetv2_predict", *arguments)
    folders.run("mednext", "convert", trained, bundle / "models" / "model.pt")
    narrow = ("--network_def::base_channels", 4, "--num_workers", 0)
    folders.run("mednext", "predict", bundle, folders.images, tmp_path / "ours", *narrow)
    unconverted = ("--checkpoint", trained, *narrow)
    folders.run("mednext", "predict", bundle, folders.images, tmp_path / "unconverted", *unconverted)
    theirs, ours = (nib.load(tmp_path / name / "case_5.nii.gz") for name in ("theirs", "ours"))
    same = nib.load(tmp_path / "unconverted" / "case_5.nii.gz")
    np.testing.assert_array_equal(np.asarray(same.dataobj), np.asarray(ours.dataobj))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    theirs, ours = np.asarray(theirs.dataobj), np.asarray(ours.dataobj)
    assert (theirs > 0).any() and np.mean(ours != theirs) < 0.005  # outputs averaged by one, probabilities by the other
    settings = read_settings(bundle / "models" / "model.pt")
    assert settings["normalization"] == ["masked_zscore_v2", "CT_v2"] and settings["spacing"] == [1.0, 1.0, 1.0]
    splits = json.loads((folders.preprocessed / DATASET / "splits_final.json").read_text())
    cases = training_cases(str(folders.raw / DATASET), 0, splits=splits)
    with pytest.raises(ValueError, match="4 of the 4 cases to evaluate are its training cases"):
        check_fold(bundle / "models" / "model.pt", 1, cases)


RUNNER = """
from monai.apps.nnunet import nnUNetV2Runner
folders = {{"nnunet_raw": {raw!r}, "nnunet_preprocessed": {preprocessed!r}, "nnunet_results": {results!r}}}
trainer = "nnUNetTrainerMedNeXtShort_kernel3"
runner = nnUNetV2Runner(folders | {{"dataset_name_or_id": 901}}, trainer, export_validation_probabilities=False)
runner.train_single_model("3d_fullres", 0, p="nnUNetPlansMedNeXt")
"""


@pytest.mark.slow
def test_monais_runner_trains_with_a_trainer_by_its_name(tmp_path):
    """The runner cannot choose a device, so that here a program of the name that it starts adds ``-device cpu``."""
    folders, programs = NnunetFolders(tmp_path), tmp_path / "bin"
    folders.run("mednext", "nnunet", "plan", 901, "--patch_size", 32, "--processes", 1)
    folders.run("nnUNetv2_preprocess", "-d", 901, "-plans_name", PLANS, "-c", "3d_fullres", "-np", 1)
    programs.mkdir()
    program = programs / "nnUNetv2_train"
    program.write_text(f'#!/bin/sh\nexec "{Path(sys.executable).parent}/nnUNetv2_train" "$@" -device cpu\n')
    program.chmod(0o755)
    paths = {name: str(getattr(folders, name)) for name in ("raw", "preprocessed", "results")}
    (tmp_path / "runner.py").write_text(RUNNER.format(**paths))
    environment = {**os.environ, **folders.environment, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([sys.executable, tmp_path / "runner.py"], env=environment, check=True)
    assert (folders.model("nnUNetTrainerMedNeXtShort_kernel3", PLANS) / "fold_0/checkpoint_final.pth").is_file()
    assert (folders.model("nnUNetTrainerMedNeXtShort_kernel3", PLANS) / "fold_0/validation/summary.json").is_file()
