"""Which extractor is taken, and what is said of it."""

import pytest

from umd_eqx.eval.extractors import choose_extractor, domain_warning
from umd_eqx.models.extractors.classifier import FashionClassifier
from umd_eqx.models.extractors.inception import InceptionV3
from umd_eqx.recipes.pretrain import FASHION_MNIST


@pytest.fixture(autouse=True)
def no_inception(monkeypatch):
    monkeypatch.setattr("umd_eqx.eval.extractors.find_inception", lambda *_: None)


@pytest.mark.parametrize("name", ["auto", "fashion"])
def test_images_of_another_kind_than_clothes_are_scored_with_a_warning(name):
    said = []
    assert choose_extractor(name, None, FASHION_MNIST, said.append).name == "fashion"
    assert said == []
    stripes = FASHION_MNIST._replace(name="stripes")
    assert choose_extractor(name, None, stripes, said.append).name == "fashion"
    assert [
        line
        for line in said
        if line.startswith("warning: images of stripes are scored by a classifier of fashion_mnist")
    ]
    assert all("\n" not in line for line in said)


def test_inception_is_not_warned_of():
    assert domain_warning(InceptionV3, "stripes") is None
    assert domain_warning(FashionClassifier, "fashion_mnist") is None
