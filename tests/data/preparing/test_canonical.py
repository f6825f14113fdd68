"""What is known of ImageNet 2012, and in what other images differ from it."""

import pytest

from umd_eqx.core.errors import BadInput
from umd_eqx.data.preparing.canonical import COUNTS, departures, official_classes, require_official_order


def test_its_classes_are_the_sorted_wordnet_ids():
    classes = official_classes()
    assert len(set(classes)) == 1000
    assert list(classes) == sorted(classes)
    assert (classes[0], classes[-1]) == ("n01440764", "n15075141")


def test_departures_are_told():
    classes = official_classes()
    assert departures(classes, {"train": 1_281_167, "validation": 50_000}) == []
    assert departures(classes, {"train": 1_281_166}) == [
        "its split train has 1,281,166 images instead of 1,281,167",
        "its split validation has 0 images instead of 50,000",
    ]
    assert departures(classes[1:], COUNTS) == ["it has 999 classes instead of 1,000"]
    assert departures(classes[::-1], COUNTS) == ["its classes are not in the order of their WordNet ids"]
    assert departures((*classes[1:], "n99999999"), COUNTS) == ["its classes are others, such as n99999999"]


def test_only_the_order_of_all_classes_is_required():
    classes = official_classes()
    require_official_order(classes, "here")
    require_official_order(classes[:3][::-1], "here")
    with pytest.raises(BadInput, match=r"^data.source.dir: here has the classes of ImageNet in another order"):
        require_official_order(classes[::-1], "here")
