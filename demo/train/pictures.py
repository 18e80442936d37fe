"""Write the demo's picture folder: ``python -m demo.train.pictures --help``."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from demo.train.catalogue import Emoji, load_emoji, slug
from demo.train.dataset import make_matcher, matched
from demo.train.evaluate import on_white
from demo.train.sources import TRAINED_STYLES, Icon

SIDE = 128
#: Unicode groups and subgroups that hold things one would photograph.
WANTED = (
    "animals-nature/",
    "food-drink/",
    "travel-places/",
    "activities/",
    "objects/",
    "smileys-emotion/face",
    "smileys-emotion/heart",
    "smileys-emotion/cat-face",
    "flags/flag",
)
#: Subgroups of look-alikes, and of what only a label tells apart.
UNWANTED_SUBGROUPS = (
    "time",
    "hotel",
    "place-map",
    "award-medal",
    "mail",
    "office",
    "sound",
    "other-object",
    "arts-crafts",
    "face-neutral-skeptical",
    "face-hand",
    "place-other",
)
UNWANTED = (
    " moon",
    " suit",
    "cloud with",
    "sun behind",
    "banknote",
    " book",
    "with arrow",
    "with lightning",
    "mobile phone off",
    "squinting face",
    "kissing face",
    "cat with",
    "red envelope",
    "bookmark",
    "scroll",
    "button",
    "face with diagonal",
    "clinking",
    "flower playing",
    "mahjong",
    "slider",
    "knobs",
    "disk",
    "dvd",
    "trackball",
    "heart with",
    "heart decoration",
    "heart exclamation",
    "locked with",
    "oncoming",
    "joker",
    "anguished",
    "persevering",
    "confounded",
    "hushed",
    "frowning face",
    "open mouth",
    "downcast",
    "disappointed",
    "house with",
    "houses",
    "tanabata",
    "pine decoration",
    "wind chime",
    "viewing ceremony",
    "Japanese dolls",
    "yen",
    "receipt",
)
#: One figure each of the crafts and sports (Noto draws "man" and "woman" for most of them too).
PEOPLE = (
    "artist",
    "astronaut",
    "cook",
    "detective",
    "farmer",
    "firefighter",
    "guard",
    "health worker",
    "judge",
    "mage",
    "mermaid",
    "ninja",
    "person biking",
    "person golfing",
    "person lifting weights",
    "person playing handball",
    "person rowing boat",
    "person running",
    "person surfing",
    "person swimming",
    "pilot",
    "police officer",
    "scientist",
    "singer",
    "skier",
    "snowboarder",
    "Santa Claus",
    "student",
    "teacher",
    "vampire",
    "woman dancing",
)
#: Countries' flags come from Twemoji: the Noto package leaves them out.
FLAGS = (
    "Argentina",
    "Australia",
    "Brazil",
    "Canada",
    "China",
    "Egypt",
    "Finland",
    "France",
    "Germany",
    "Greece",
    "India",
    "Italy",
    "Japan",
    "Kenya",
    "Mexico",
    "Netherlands",
    "Norway",
    "South Africa",
    "South Korea",
    "Spain",
    "Sweden",
    "Switzerland",
    "Ukraine",
    "United Kingdom",
    "United States",
)


def wanted(item: Emoji) -> bool:
    """Say whether the demo shows this emoji."""
    place = f"{item.group}/{item.subgroup}"
    if item.subgroup in UNWANTED_SUBGROUPS or any(word in item.name for word in UNWANTED):
        return False
    return place.startswith(WANTED) or item.name in PEOPLE


def chosen(cache: Path) -> Iterator[tuple[Emoji, Icon]]:
    """Yield the emoji to write, each with its drawing."""
    emoji = load_emoji(cache)
    matcher = make_matcher(cache, emoji)
    noto, twemoji = (next(s for s in TRAINED_STYLES if s.name == n) for n in ("noto", "twemoji"))
    for icon, key in matched(cache, noto, matcher):
        if key is not None and wanted(emoji[key]):
            yield emoji[key], icon
    flags = {f"flag of {country}" for country in FLAGS}
    for icon, key in matched(cache, twemoji, matcher):
        if key is not None and emoji[key].name in flags:
            yield emoji[key], icon


def write(cache: Path, target: Path) -> None:
    """Write one WebP per emoji, named after it, 128 x 128 on white."""
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.webp"):
        old.unlink()
    total = count = 0
    for item, icon in chosen(cache):
        path = target / f"{slug(item.name)}.webp"
        if path.exists():
            raise FileExistsError(path)
        memory = io.BytesIO()
        picture: Image.Image = on_white(icon, SIDE)
        picture.save(memory, "WEBP", quality=82, method=6)
        path.write_bytes(memory.getvalue())
        total += len(memory.getvalue())
        count += 1
    print(f"{count} pictures, {total / 1e6:.2f} MB")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="downloads")
    parser.add_argument("--target", type=Path, required=True)
    args = parser.parse_args()
    write(args.scratch / "npm", args.target)


if __name__ == "__main__":
    main()
