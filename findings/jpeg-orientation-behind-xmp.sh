#!/usr/bin/env bash
# A JPEG whose XMP segment stands before its Exif segment: torchcodec and torchvision do not turn it upright, Pillow and OpenCV do.
#
# Guess: "torchcodec always applies the EXIF orientation", so the boxes of an annotation tool, which are those of the upright
# picture, fit. Both decoders look at the first APP1 segment alone. Where that is XMP, as some editors write it, the picture stays as it is
# stored: with orientation 6 the sizes are swapped; with 3 the size is right and every box wrong. The same where the tag is only in XMP
# (tiff:Orientation), which Pillow's exif_transpose follows and OpenCV does not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 torchcodec==0.17.0 \
    pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys
import warnings

import cv2
import numpy as np
import PIL
import torch
import torchcodec
import torchvision
from PIL import Image, ImageOps
from torchcodec.decoders import decode_jpeg

warnings.simplefilter("ignore")
print(f"torchcodec {torchcodec.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}, OpenCV {cv2.__version__}")

y, x = np.mgrid[:61, :83]
pixels = np.stack([3 * x, 4 * y, x + y], axis=-1).astype(np.uint8)  # 61 high, 83 wide, as stored
exif = Image.Exif()
exif[0x0112] = 6
XMP = b"http://ns.adobe.com/xap/1.0/\0" + (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"%s/></rdf:RDF></x:xmpmeta>'
).encode()


def jpeg(**options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def with_xmp_first(content, attribute=b""):
    packet = XMP % attribute
    return content[:2] + b"\xff\xe1" + (len(packet) + 2).to_bytes(2, "big") + packet + content[2:]


def sizes(content):
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    rgb = torchvision.io.ImageReadMode.RGB
    return {
        "torchcodec": tuple(decode_jpeg(data).shape[1:]),
        "torchvision": tuple(torchvision.io.decode_jpeg(data, rgb, apply_exif_orientation=True).shape[1:]),
        "Pillow": ImageOps.exif_transpose(Image.open(io.BytesIO(content))).size[::-1],
        "OpenCV": cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape[:2],
    }


STORED, UPRIGHT = (61, 83), (83, 61)
found = {
    "Exif alone": sizes(jpeg(exif=exif)),
    "XMP, then Exif": sizes(with_xmp_first(jpeg(exif=exif))),
    "tag in XMP alone": sizes(with_xmp_first(jpeg(), b' tiff:Orientation="6"')),
}
for name, shapes in found.items():
    print(f"{name}: {shapes} (height, width); upright is {UPRIGHT}")
expected = {
    "Exif alone": dict.fromkeys(found["Exif alone"], UPRIGHT),
    "XMP, then Exif": {"torchcodec": STORED, "torchvision": STORED, "Pillow": UPRIGHT, "OpenCV": UPRIGHT},
    "tag in XMP alone": {"torchcodec": STORED, "torchvision": STORED, "Pillow": UPRIGHT, "OpenCV": STORED},
}
if found != expected:
    sys.exit("changed: not what was seen")
print("as seen: both decoders overlook an orientation that is not in the first APP1 segment")
PYTHON
