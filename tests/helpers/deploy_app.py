"""An app of the MONAI Deploy App SDK, run in the environment of the SDK: BUNDLE IMAGE.nii.gz RESULT.npy.

A source emits the image as the SDK's operator for DICOM series does, then comes its operator for bundles.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import nibabel
import numpy as np
from holoscan.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator
from monai.deploy.operators.monai_bundle_inference_operator import IOMapping, MonaiBundleInferenceOperator


class Source(Operator):
    def setup(self, spec: Any) -> None:
        spec.output("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        file = nibabel.load(sys.argv[2])
        spacing = dict(zip(("row_pixel_spacing", "col_pixel_spacing", "depth_pixel_spacing"), file.header.get_zooms()))
        meta = {**{name: float(value) for name, value in spacing.items()}, "nifti_affine_transform": file.affine}
        op_output.emit(Image(np.swapaxes(np.asarray(file.dataobj), 0, 2), meta), "image")


class Sink(Operator):
    def setup(self, spec: Any) -> None:
        spec.input("pred")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        np.save(sys.argv[3], np.swapaxes(op_input.receive("pred").asnumpy(), 0, 2))


class App(Application):
    def compose(self) -> None:
        source = Source(self, CountCondition(self, 1), name="source")
        bundle = MonaiBundleInferenceOperator(
            self,
            app_context=AppContext({}),
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=sys.argv[1],
            name="bundle",
        )
        self.add_flow(source, bundle, {("image", "image")})
        self.add_flow(bundle, Sink(self, name="sink"), {("pred", "pred")})


if __name__ == "__main__":
    App().run()
    sys.stdout.flush()
    os._exit(0)  # Holoscan does not always end its threads
