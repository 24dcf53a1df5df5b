"""`--similarity` and `--affine` take the words that a bundle offers to all others."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.commands.bundles import find_bundle, offered
from custom_components.commands.workflow import load_workflow
from custom_components.data.phantoms import write_phantom_scans
from custom_components.methods.learned_similarity.network import AlignmentNetwork, PatchAutoencoder, small
from custom_components.methods.learned_similarity.similarity import FeatureDistance, LearnedSimilarity

WORDS = [("similarity", word) for word in ("learned", "features", "brain_features")] + [("affine", "search")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of networks that know nothing, in half precision."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    networks = {"volumes": AlignmentNetwork.volumes(2), "patches": AlignmentNetwork.patches(2)}
    for name, network in {**networks, "features": PatchAutoencoder(2)}.items():
        torch.save(small(network.state_dict()), folder / f"{name}.pt")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    write_phantom_scans(folder, 2, (48, 48), num_validation=0)
    return [str(path) for path in sorted((folder / "images").glob("*.nii.gz"))[:2]]


@pytest.mark.parametrize(("setting", "word"), WORDS)
def test_a_word_stands_for_a_config_and_weights_in_a_bundles_folder(setting, word):
    files, paths = offered(setting, word, 3)
    assert [Path(file).stem for file in files] == [word]
    assert all(Path(file).is_file() for file in files)
    assert [Path(str(path)).suffix for path in paths.values()] == [".pt"]


def test_other_words_are_left_to_others():
    assert offered("similarity", "mind", 3) == offered("affine", "itk", 3) == ([], {})


@pytest.mark.parametrize("command", ["register", "optimize"])
def test_an_unknown_word_is_answered_with_all_that_there_are(command, pair):
    import custom_components as mz

    found = "auto, lncc, mind, mi, nmi, ngf, learned, features, brain_features, got 'learnt'; did you mean learned?"
    with pytest.raises(ValueError, match=f"--similarity: expected {found}".replace("?", r"\?")):
        getattr(mz, command)(*pair, similarity="learnt")


def test_what_has_no_weights_for_a_dimension_is_refused():
    with pytest.raises(ValueError, match="--similarity brain_features: there are no weights for 2-D images"):
        offered("similarity", "brain_features", 2)


@pytest.mark.parametrize("bundle", ["synthmorph", "quicksilver"])
@pytest.mark.parametrize(
    ("word", "kind", "file"), [("learned", LearnedSimilarity, "patches"), ("features", FeatureDistance, "features")]
)
def test_the_refinement_of_a_bundle_compares_by_it(bundle, word, kind, file, weights):
    from custom_components.commands.optimize import training_free

    settings = {"similarity": word, "similarity_weights": str(weights / f"{file}.pt")}
    workflow = load_workflow(find_bundle(bundle), 2, training_free(None), settings, {"dataset#data": []})
    refinement = workflow.parser.get_parsed_content("refinement")
    assert isinstance(refinement.loss.similarity, kind)
    assert workflow.parser.get_parsed_content("similarity") == word


def test_optimize_registers_by_it(pair, weights):
    from custom_components import optimize

    settings = {"similarity": "learned", "similarity_weights": str(weights / "patches.pt"), "iterations": [2, 2, 2]}
    found = optimize(*pair, affine="none", spacing=1.0, **settings)
    assert np.isfinite(found.metrics["ncc_after"])


@pytest.mark.parametrize("search", ["gradient", "evolution"])
def test_a_search_aligns_a_pair_that_was_moved(search, pair, weights, tmp_path):
    from custom_components import register

    image = nib.load(pair[0])
    moved = image.affine.copy()
    moved[:2, 3] += [9, -6]
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), moved), tmp_path / "moved.nii.gz")
    settings = {
        "affine": "search",
        "search_by": "lncc",
        "search": search,
        "search_weights": str(weights / "volumes.pt"),
    }
    found = register(str(tmp_path / "moved.nii.gz"), pair[0], stages="rigid", search_starts=2, **settings)
    assert found.metrics["affine_translation_mm"] == pytest.approx([9, -6], abs=0.3)


def test_a_search_by_the_network_is_a_rigid_map(pair, weights):
    from custom_components import register

    settings = {"affine": "search", "search_starts": 2, "search_weights": str(weights / "volumes.pt")}
    found = register(*pair, stages="rigid", **settings)
    assert found.metrics["affine_scaling"] == pytest.approx([1, 1], abs=1e-4)


def test_demons_follow_intensities_alone(pair, weights):
    from custom_components import optimize

    with pytest.raises(ValueError, match="expected similarity mse, got LearnedSimilarity"):
        optimize(*pair, model="demons", similarity="learned", similarity_weights=str(weights / "patches.pt"))
