"""The sentence that a user needs is found in what arrives at the top of a failed run."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser

from mednext_monai.data.io import read_image
from mednext_monai.errors import diagnosis
from mednext_monai.evaluation import read_labels
from mednext_monai.options import switch


def arriving(run) -> BaseException:
    with pytest.raises(Exception) as caught:
        run()
    return caught.value


def test_an_error_of_ours_inside_those_of_monai():
    parser = ConfigParser({"mirror": {"_target_": "mednext_monai.options.switch", "mirror": "off"}, "x": "$[@mirror]"})
    error = arriving(lambda: parser.get_parsed_content("x"))
    assert "off" not in str(error) or "debugging mode" in str(error)
    assert diagnosis(error) == "mirror must be true or false, got 'off'."


def test_an_error_of_ours_that_explains_one_of_python(tmp_path):
    broken = tmp_path / "scan.nii.gz"
    broken.write_bytes(b"no image")
    sentence = diagnosis(arriving(lambda: read_image(broken)))
    assert sentence is not None and str(broken) in sentence


def test_an_error_of_ours_that_names_the_file_of_another_of_ours(tmp_path):
    labels = tmp_path / "labels.json"
    labels.write_text('{"labels": {"background": 0, "one": -1}}')
    assert str(diagnosis(arriving(lambda: read_labels(labels)))).startswith(f"{labels}: the classes must have")


class Failing(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            switch(mirror="off")
        except ValueError as error:
            raise RuntimeError("applying transform") from error


def test_an_error_of_ours_in_a_process_of_a_data_loader():
    loader = torch.utils.data.DataLoader(Failing(), num_workers=1)
    error = arriving(lambda: list(loader))
    assert "worker process" in str(error)
    assert diagnosis(error) == "mirror must be true or false, got 'off'."


def test_an_error_of_others_has_no_diagnosis():
    assert diagnosis(arriving(lambda: torch.zeros(2) + torch.zeros(3))) is None
    assert diagnosis(arriving(lambda: int("x"))) is None
