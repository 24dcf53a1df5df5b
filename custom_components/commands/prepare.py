"""`morphzoo prepare`: from scans as a scanner gives them to images that a training reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bundles import bundles_folder
from .settings import give, typed_settings
from .workflow import as_list

if TYPE_CHECKING:
    from ..preparation.cohort import Prepared


def prepare(
    folder: str,
    output: str = "prepared",
    *,
    template: str | None = None,
    spacing: float | Sequence[float] | None = None,
    size: Sequence[int] | None = None,
    normalize: str | None = None,
    bias: bool | None = None,
    brain: bool | None = None,
    masks: str | None = None,
    contrasts: Sequence[str] | None = None,
    pattern: str | None = None,
    run: int | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
    again: bool = False,
    overlay: str | Sequence[str] = (),
    **settings: object,
) -> Prepared:
    """Clean, align and normalise all scans of a folder: BIDS derivatives, a data list for training, and a page.

    Steps: the axes are reordered to RAS, the bias field is corrected, the brain found, all contrasts of a session
    aligned with its first T1w image and this with the template, all resampled once, and intensities normalised.
    OUTPUT/qc.html shows every session, failures first; OUTPUT/datalist.json is for training. A session that fails does
    not stop the others; the command then ends with an error. A second call does only what is missing or has changed.

    Args:
        folder: a BIDS data set; or a folder with images named by person and contrast; or PERSON/[SESSION/]SERIES with
            DICOM files.
        output: folder for the results.
        template: "mni152"; "group", the average of these scans; "none"; or an image. Default: mni152.
        spacing: of the results, mm; default: the template's, 1 mm.
        size: voxels of the results, for instance 160,224,192, about the template's middle; default: the whole template.
        normalize: how intensities become comparable: percentile (default), zscore, whitestripe, nyul, fcm, gmm or none.
        bias: correct the bias field (N4); default: True.
        brain: find the brain; sessions with masks keep theirs; default: True.
        masks: brain masks on the grids of the T1w images, by a pattern with {subject} and {session}.
        contrasts: what is taken, the reference first; default: T1w,T2w,FLAIR.
        pattern: which files are taken if not BIDS, for instance "{subject}/{session}_{contrast}.nii.gz".
        run: which run to take where a session has several.
        jobs: processes, each of one thread; default: 1.
        scheduler: a Dask scheduler whose workers do the sessions instead, tcp://HOST:PORT or its file (docs/cohort.md).
        again: do all sessions again.
        overlay: further config files, the last one wins.
        **settings: any other setting of bundles/prepare/configs/prepare.json: --template_mask FILE, --stripped False,
            --people FILE (a table whose columns become attributes; default: FOLDER/participants.tsv), ...
    Examples:
        `morphzoo prepare DIR -o prepared --spacing 2 --jobs 4`
    Returns:
        What became of each session.
    Raises:
        RuntimeError: after the others are done, if a session failed.
    """
    from monai.bundle import ConfigParser

    from ..runs import start, unwrapped

    root = bundles_folder() / "prepare"
    settings |= {"dataset_dir": str(folder), "output_dir": str(output), "template": template, "spacing": spacing}
    settings |= {"size": size, "normalize": normalize, "bias": bias, "brain": brain, "masks": masks}
    settings |= {"contrasts": contrasts, "pattern": pattern, "take_run": run, "jobs": jobs, "again": again}
    settings["scheduler"] = scheduler
    configs = [str(root / "configs" / "prepare.json"), *as_list(overlay)]
    config = ConfigParser.load_config_files(configs)
    parser = ConfigParser(config)
    give(parser, {**typed_settings("prepare", config, settings), "bundle_root": str(root)})
    start(parser.get_parsed_content("seed"))
    with unwrapped():
        preparation = parser.get_parsed_content("preparation")
        return preparation.run()
