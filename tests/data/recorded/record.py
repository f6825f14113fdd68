"""Records crops and resizes of TensorFlow as `images.npz`, which `tests/data/test_against_tensorflow.py` compares with.

    pip install tensorflow-cpu==2.21.0 && python record.py images.npz

Keys: `crop_H_W_A` are 4,000 boxes (top, left, height, width) that `sample_distorted_bounding_box` drew in images of
H x W with at least A % of the area; `image_H_W_S` is an image, and `evaluation_`, `few_shot_`, `squash_` and `train_`
with the same rest are what the pipelines of the reference make of it at S x S pixels.
"""

import sys

import numpy as np
import tensorflow as tf


def photograph(height, width, seed):
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = np.inf
    waves = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, height, width))) / frequency).real
    return np.clip(128 + 50 * waves / waves.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def crops(height, width, area_min, number=4000):
    def draw(_):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            [height, width, 3],
            tf.zeros([0, 0, 4]),
            area_range=(area_min / 100, 1.0),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], size[:2]], 0)

    boxes = tf.function(lambda: tf.map_fn(draw, tf.range(number), fn_output_signature=tf.int32))()
    return boxes.numpy().astype(np.int16)


def resized(image, height, width, antialias=False):
    return tf.cast(tf.image.resize(image, (height, width), "bilinear", antialias=antialias), tf.uint8)


def smaller_side(image, size, antialias):
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    height, width = tf.unstack(tf.cast(tf.round(sides * (size / tf.reduce_min(sides))), tf.int32))
    return resized(image, height, width, antialias)


def central(image, size):
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return tf.image.crop_to_bounding_box(image, top, left, size, size)


def main(file):
    tf.random.set_seed(0)
    arrays = {}
    for height, width, area_min in ((375, 500, 80), (500, 375, 8), (375, 500, 95), (96, 96, 5), (64, 200, 50)):
        arrays[f"crop_{height}_{width}_{area_min}"] = crops(height, width, area_min)
    for height, width, size in ((75, 100, 32), (120, 81, 28), (40, 53, 48)):
        image, name = photograph(height, width, seed=height), f"{height}_{width}_{size}"
        top, left, rows, columns = height // 7, width // 5, height // 2, width * 2 // 3
        arrays |= {
            f"image_{name}": image,
            f"evaluation_{name}": central(smaller_side(image, size, False), size),
            f"few_shot_{name}": central(smaller_side(image, int(size * 256 / 246), True), size),
            f"squash_{name}": resized(image, size, size),
            f"train_{name}": resized(image[top : top + rows, left : left + columns], size, size),
        }
    np.savez_compressed(file, **{name: np.asarray(array) for name, array in arrays.items()})


if __name__ == "__main__":
    main(sys.argv[1])
