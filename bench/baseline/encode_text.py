"""The baseline for texts: a line-at-a-time script as the LAION-400M guide describes it.

    encode_text.py CHECKPOINT      one text a line on stdin, one embedding a line on stdout

The model is loaded in the script, each row is encoded by itself at the full context length, and the
answer is text.
"""

import sys

import open_clip
import torch

if __name__ == "__main__":
    model = open_clip.create_model("ViT-B-32", pretrained=sys.argv[1]).eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    for line in sys.stdin:
        with torch.no_grad():
            features = model.encode_text(tokenizer([line.rstrip("\n")]))[0]
        sys.stdout.write(f"{features.tolist()}\n")
        sys.stdout.flush()
