"""The sample's drawing: objects are where their polygons say and look like their category."""

import dataclasses
import itertools

import numpy as np
import pycocotools.mask
import pytest

from pipeline.data.render import RIM_COLOURS, TEXTURE_FIELDS, draw_scene
from pipeline.data.sample_plan import TRAIN, SampleSettings, assign
from pipeline.data.sample_scene import PlacedObject, Scene, plan_scene
from pipeline.data.sample_shapes import RIMS, SHAPES, TEXTURES

SETTINGS = SampleSettings()
SEED = 0


def scene_of(index: int) -> Scene:
    return plan_scene(SETTINGS, SEED, TRAIN, index, assign(SETTINGS, SEED, TRAIN).of_image(index))


def lone(label: int, size: int = 60, look: tuple[float, ...] = (0.5,) * 8) -> Scene:
    """One object of `label` somewhere in a landscape image, with chosen colours."""
    settings = SampleSettings(object_size_px=(size, size), portrait_fraction=0.0)
    (placed,) = plan_scene(settings, SEED, TRAIN, 1, np.array([label])).objects
    return Scene(160, 128, (dataclasses.replace(placed, look=np.array(look)),))


def draw(scene: Scene, index: int = 1) -> np.ndarray:
    return draw_scene(scene, SETTINGS, SEED, TRAIN, index).astype(np.int64)


def without(scene: Scene, placed: PlacedObject) -> Scene:
    return dataclasses.replace(scene, objects=tuple(o for o in scene.objects if o is not placed))


def mask(placed: PlacedObject, scene: Scene) -> np.ndarray:
    """(H, W) the annotated polygon, rasterised by pycocotools."""
    encoded = pycocotools.mask.frPyObjects([placed.polygon.ravel().tolist()], scene.height, scene.width)
    return pycocotools.mask.decode(encoded)[:, :, 0].astype(bool)


def touched(placed: PlacedObject, scene: Scene) -> np.ndarray:
    """(H, W) the pixels of which any of 8 x 8 cells belongs to the polygon: thin tips too."""
    fine = (8 * placed.polygon).ravel().tolist()
    encoded = pycocotools.mask.frPyObjects([fine], 8 * scene.height, 8 * scene.width)
    cells = pycocotools.mask.decode(encoded)[:, :, 0].reshape(scene.height, 8, scene.width, 8)
    return cells.any(axis=(1, 3))


def grown(region: np.ndarray) -> np.ndarray:
    """The region and its neighbours, diagonal ones too."""
    padded = np.pad(region, 1)
    height, width = region.shape
    return np.any([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)


def test_images_are_repeatable_and_of_the_stated_size():
    sizes = set()
    for index in range(12):
        scene = scene_of(index)
        pixels = draw_scene(scene, SETTINGS, SEED, TRAIN, index)
        assert pixels.dtype == np.uint8 and pixels.shape == (scene.height, scene.width, 3)
        assert np.array_equal(pixels, draw_scene(scene, SETTINGS, SEED, TRAIN, index))
        assert pixels.std() > 8  # a scene, not a plain colour
        sizes.add((scene.width, scene.height))
    assert sizes == {(160, 128), (128, 160)}


def test_each_object_changes_the_pixels_of_its_polygon_and_no_others():
    checked = 0
    for index in range(25):
        scene = scene_of(index)
        whole = draw(scene, index)
        for placed in scene.objects:
            change = np.abs(whole - draw(without(scene, placed), index)).mean(axis=2)
            region = mask(placed, scene)
            assert not change[~grown(touched(placed, scene))].any()
            for other in scene.objects:  # what lies on top hides it
                if other.depth > placed.depth:
                    region &= ~grown(mask(other, scene))
            if region.any():
                assert change[region].mean() > 10
                assert change[region].mean() > 20 * change[~mask(placed, scene)].mean()
                checked += 1
    assert checked > 60


@pytest.mark.parametrize("label", range(len(SHAPES)), ids=list(SHAPES))
def test_the_drawn_silhouette_is_the_polygon(label):
    scene = lone(label)
    changed = np.abs(draw(scene) - draw(Scene(160, 128, ()))).max(axis=2) > 4
    region = mask(scene.objects[0], scene)
    assert (changed & region).sum() / (changed | region).sum() > 0.88


def test_the_object_on_top_hides_the_one_below():
    (below,), (above,) = lone(1).objects, lone(0, size=30, look=(0.1,) * 8).objects
    shift = below.centre - above.centre
    moved = {"outline": above.outline + shift, "polygon": above.polygon + shift, "centre": below.centre}
    above = dataclasses.replace(above, depth=below.depth + 1, **moved)
    only, both = draw(Scene(160, 128, (above,))), draw(Scene(160, 128, (above, below)))
    core = ~grown(~mask(above, Scene(160, 128, ())))
    assert core.sum() > 200 and np.array_equal(only[core], both[core])
    below = dataclasses.replace(below, depth=above.depth + 1)
    assert not np.array_equal(only[core], draw(Scene(160, 128, (above, below)))[core])


def test_colours_vary_inside_a_category_but_the_texture_stays():
    one, other = (lone(1, look=(hue, *(0.5,) * 7)) for hue in (0.0, 0.5))
    first, second = draw(one), draw(other)
    core = ~grown(grown(~mask(one.objects[0], one)))
    assert np.abs(first - second)[core].mean() > 40
    grey_first, grey_second = first.mean(axis=2)[core], second.mean(axis=2)[core]
    assert np.corrcoef(grey_first, grey_second)[0, 1] > 0.8


def test_the_textures_differ_from_each_other():
    ticks = np.linspace(-1, 1, 60)
    u, v = ticks[None, :], ticks[:, None]
    fields = {name: np.broadcast_to(field(u, v), (60, 60)) for name, field in TEXTURE_FIELDS.items()}
    assert tuple(fields) == TEXTURES
    for field in fields.values():
        assert field.min() >= 0 and field.max() <= 1 and field.std() > 0.1
    for one, other in itertools.combinations(fields.values(), 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.6


def test_beyond_160_categories_the_rim_tells_them_apart():
    assert tuple(RIM_COLOURS) == RIMS
    plain = lone(0)
    for label in range(160, 1203, 160):
        rimmed = lone(label)
        difference = np.abs(draw(plain) - draw(rimmed)).max(axis=2)
        inner = mask(plain.objects[0], plain)
        for _ in range(5):
            inner = ~grown(~inner)
        assert inner.sum() > 500 and not difference[inner].any()
        assert difference.max() > 60


def test_clutter_is_drawn_only_where_asked_for():
    empty = Scene(160, 128, ())
    bare, cluttered = (
        draw_scene(empty, dataclasses.replace(SETTINGS, clutter=(n, n)), SEED, TRAIN, 1) for n in (0, 6)
    )
    assert not np.array_equal(bare, cluttered)


def test_grounds_differ_between_images():
    empty = Scene(160, 128, ())
    means = {tuple(draw(empty, index).mean(axis=(0, 1)).round().tolist()) for index in range(10)}
    assert len(means) == 10
