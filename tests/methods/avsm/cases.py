"""What several test files of this folder share."""

import pytest

SIZES = [(33, 28), (20, 17, 18)]
both = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
