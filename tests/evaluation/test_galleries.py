"""Pictures of what pictures and texts have to do with each other."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mmflow.evaluation import galleries
from mmflow.evaluation.galleries import Answer, Query, class_bars, retrieval_gallery, similarity_matrix
from mmflow.world.stills import WorldPictures


@pytest.fixture
def drawn(monkeypatch, tmp_path) -> list[Figure]:
    """The figures that were saved."""
    figures = []
    save = galleries.save

    def kept(figure, out):
        figures.append(figure)
        save(figure, out)
        with Image.open(out) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200

    monkeypatch.setattr(galleries, "save", kept)
    return figures


@pytest.fixture(scope="module")
def world() -> tuple[list[torch.Tensor], list[str]]:
    source = WorldPictures(0, 0, 6)
    samples = [source.sample("test", number) for number in range(6)]
    pictures = [np.array(Image.open(io.BytesIO(sample["jpg"]))) for sample in samples]
    return [torch.from_numpy(p).permute(2, 0, 1) / 255 for p in pictures], [sample["txt"] for sample in samples]


def texts_of(figure: Figure) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in [*axes.texts, axes.title, *axes.get_yticklabels()]]
    return [text.replace("\n", " ") for text in found if text]


def framed(figure: Figure) -> list[str]:
    """The titles of the pictures with a green frame."""
    green = [axes for axes in figure.axes if axes.axison and axes.spines["left"].get_linewidth() > 2]
    return [axes.get_title() for axes in green]


def test_gallery_frames_what_is_right_and_shows_it_where_it_was_not_found(world, drawn, tmp_path):
    pictures, texts = world
    by_text = [
        Query("a red circle", [Answer(pictures[0], 0.5, True), Answer(pictures[1], 0.25, False)], 0, pictures[0]),
        Query("a $5 square", [Answer(pictures[2], 0.4, False), Answer(pictures[3], 0.3, False)], 1233, pictures[4]),
    ]
    by_image = [Query(pictures[5], [Answer(texts[0], 0.7, False), Answer(texts[5], 0.6, True)], 1, texts[5])]
    by_image.append(Query(pictures[4], [Answer(texts[0], -0.7, False), Answer(texts[1], -0.8, False)], 5, texts[4]))
    retrieval_gallery(by_text, by_image, tmp_path / "gallery.png")
    said = texts_of(drawn[0])
    assert {"a red circle", "a $5 square", "0.50", "0.25", "place 1,234", "0.70", "-0.80", texts[5]} <= set(said)
    assert any(text.startswith("place 6: the picture shows") for text in said)
    assert framed(drawn[0]) == ["0.50", "place 1,234"]


def test_a_gallery_needs_both_kinds(world, tmp_path):
    with pytest.raises(ValueError, match="0 texts and 0 pictures ask; a gallery needs one of each"):
        retrieval_gallery([], [], tmp_path / "gallery.png")


def test_bars_are_sorted_and_unseen_classes_have_another_colour(drawn, tmp_path):
    accuracies = {"red ring": 0.5, "blue ring": 1.0, "red cross": 0.75, "blue cross": 0.0}
    class_bars(accuracies, ["red ring", "blue cross"], 0.25, "by class", tmp_path / "bars.png")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "blue ring",
        "red cross",
        "red ring",
        "blue cross",
    ]
    assert [bar.get_width() for bar in axes.patches] == [1.0, 0.75, 0.5, 0.0]  # type: ignore[attr-defined]
    assert [text.get_text() for text in axes.texts] == ["100%", "75%", "50%", "0%"]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["mean of seen classes 87.5%", "mean of unseen classes 25.0%", "chance 25.0%"]


def test_of_many_classes_the_best_and_the_worst_are_drawn(drawn, tmp_path):
    class_bars({f"class {n}": n / 100 for n in range(100)}, [], 0.01, "by class", tmp_path / "bars.png")
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert len(labels) == 61
    assert labels[0] == "class 99"
    assert labels[29:32] == ["class 70", "… 40 more …", "class 29"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["mean of all classes 49.5%", "chance 1.0%"]
    with pytest.raises(ValueError, match="leaves nothing to draw"):
        class_bars({}, [], 0.01, "by class", tmp_path / "bars.png")


def test_a_matrix_has_a_row_for_each_text_and_the_numbers_in_its_cells(world, drawn, tmp_path):
    pictures, texts = world
    cosines = torch.arange(9.0).view(3, 3) / 10
    similarity_matrix(pictures[:3], texts[:3], cosines, tmp_path / "matrix.png")
    axes = drawn[0].axes[0]
    numbers = [text.get_text() for text in axes.texts]
    assert numbers == ["0.00", "0.30", "0.60", "0.10", "0.40", "0.70", "0.20", "0.50", "0.80"]
    assert axes.images[0].get_array().tolist() == pytest.approx(cosines.T.numpy())  # type: ignore[union-attr]
    assert len(axes.child_axes) == 3
    assert [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()] == texts[:3]
    with pytest.raises(ValueError, match=r"3 pictures, 2 texts and cosines \(3, 3\) are not N, N, \(N, N\)"):
        similarity_matrix(pictures[:3], texts[:2], cosines, tmp_path / "matrix.png")
