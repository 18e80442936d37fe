"""The baseline for pictures: a line-at-a-time script as the LAION-400M guide describes it.

encode_image.py CHECKPOINT      one path a line on stdin, one embedding a line on stdout
"""

import sys

import open_clip
import torch
from PIL import Image

if __name__ == "__main__":
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=sys.argv[1])
    model.eval()
    for line in sys.stdin:
        with torch.no_grad():
            pixels = preprocess(Image.open(line.rstrip("\n"))).unsqueeze(0)
            features = model.encode_image(pixels)[0]
        sys.stdout.write(f"{features.tolist()}\n")
        sys.stdout.flush()
