"""A small BIDS data set of phantoms: T1w and T2w of one person show the same, at places that differ by a known map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigParser
from support import oriented

from custom_components.commands.bundles import bundles_folder
from custom_components.data.phantoms import phantom_pair
from custom_components.preparation.cohort import Preparation

SIZE, SPACING = (36, 40, 34), (4.0, 4.0, 4.0)
MOVED = nib.affines.from_matvec(np.eye(3), [6.0, -4.0, 5.0])  # of each T2w image, by its header
CODES = ("RAS", "LPS", "PIR", "LAS", "RAS", "ASL")


def write_person(root: Path, k: int, *, session: str = "", t2: bool = True) -> Path:
    """Write a person's scans and brain mask; the folder of the scans."""
    pair = phantom_pair(SIZE, k, noise=0.01)
    image, label = pair["fixed"][0, 0].numpy(), pair["label_fixed"][0, 0].numpy()
    ras = oriented("RAS", SIZE, SPACING)
    name = f"sub-{k:02d}" + (f"_ses-{session}" if session else "")
    folder = root / f"sub-{k:02d}" / (f"ses-{session}" if session else "") / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"T1w": (1000 * image, ras), "mask": ((label > 0).astype(np.uint8), ras)}
    if t2:
        arrays["T2w"] = 700 * (1.1 - image) * (label > 0) + 5 * image, MOVED @ ras
    codes = nib.orientations.axcodes2ornt(CODES[k % len(CODES)])
    for kind, (array, affine) in arrays.items():
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), codes)
        kept = array if kind == "mask" else array.astype(np.float32)
        nib.save(nib.Nifti1Image(kept, affine).as_reoriented(turn), folder / f"{name}_{kind}.nii.gz")
    return folder


MASKS = "sub-{subject}/anat/sub-{subject}_mask.nii.gz"


def preparation(folder: Path, output: Path, **settings: Any) -> Preparation:
    """The bundle's preparation, for phantoms: without what takes time."""
    parser = ConfigParser(ConfigParser.load_config_file(str(bundles_folder() / "prepare" / "configs" / "prepare.json")))
    given = {"dataset_dir": str(folder), "output_dir": str(output), "template": "none", "template_rounds": 1}
    for name, value in {**given, "masks": MASKS, "bias": False, "brain": False, **settings}.items():
        parser[name] = value
    return parser.get_parsed_content("preparation")


def write_series(
    folder: Path, *, description: str = "t1", turned: int | None = None, missing: int | None = None
) -> Path:
    """Write a DICOM series of six slices, one of them turned or missing if wanted; the folder."""
    import itk

    folder.mkdir(parents=True)
    for k in (k for k in range(6) if k != missing):
        image = itk.image_from_array((np.arange(480) + k).reshape(1, 20, 24).astype(np.int16))
        axes = [1, 0, 0, 0, 0, 1] if k == turned else [1, 0, 0, 0, 1, 0]
        said = {
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0008|0018": f"1.2.3.4.{k}",
            "0008|103e": description,
            "0020|0013": str(k),
            "0020|0032": f"0\\0\\{2 * k}",
            "0020|0037": "\\".join(map(str, axes)),
        }
        for tag, value in said.items():
            image.GetMetaDataDictionary()[tag] = value
        image.SetSpacing([1.0, 1.0, 2.0])
        image.SetOrigin([0.0, 0.0, 2.0 * k])
        if k == turned:
            image.SetDirection(itk.matrix_from_array(np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])))
        io = itk.GDCMImageIO.New()
        io.KeepOriginalUIDOn()
        writer = itk.ImageFileWriter[type(image)].New(image, FileName=str(folder / f"{k}.dcm"))
        writer.SetImageIO(io)
        writer.Update()
    return folder
