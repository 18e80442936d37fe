"""The list of emoji (name, keywords, kind) and the matching of drawings to it."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from demo.train.sources import WORD_PACKAGES, Icon, download

#: Plain words for Unicode's subgroups, so that "something to eat" and "vehicle" mean something.
KINDS: dict[str, tuple[str, ...]] = {
    "face-": ("face", "smiley", "emotion"),
    "face-smiling": ("happy face", "smiling face", "a happy person"),
    "face-affection": ("loving face", "happy face", "affection"),
    "face-sleepy": ("tired face", "sleepy face"),
    "face-unwell": ("sick face", "ill person"),
    "face-concerned": ("sad face", "worried face", "unhappy face"),
    "face-negative": ("angry face", "bad mood"),
    "cat-face": ("cat", "animal face"),
    "heart": ("heart", "love"),
    "hand": ("hand", "gesture", "fingers"),
    "body-parts": ("body part", "part of the body"),
    "person": ("person", "people", "human"),
    "person-role": ("person at work", "profession", "job"),
    "person-fantasy": ("fantasy character", "fairy tale"),
    "person-sport": ("athlete", "person doing sport", "sport"),
    "family": ("family", "people", "group of people"),
    "animal-": ("animal", "creature"),
    "animal-mammal": ("mammal",),
    "animal-bird": ("bird", "animal with wings", "animal that flies"),
    "animal-reptile": ("reptile",),
    "animal-marine": ("sea animal", "marine animal", "animal that lives in water", "sea creature"),
    "animal-bug": ("insect", "bug", "small animal"),
    "plant-": ("plant", "nature"),
    "plant-flower": ("flower", "blossom"),
    "food-": ("food", "something to eat", "meal"),
    "food-fruit": ("fruit",),
    "food-vegetable": ("vegetable",),
    "food-asian": ("asian food",),
    "food-sweet": ("dessert", "sweet food", "something sweet"),
    "drink": ("drink", "beverage", "something to drink"),
    "dishware": ("cutlery", "dishes", "something to eat with", "kitchen"),
    "place-building": ("building", "house", "architecture"),
    "place-geographic": ("landscape", "scenery"),
    "place-religious": ("religious building", "place of worship"),
    "place-": ("place",),
    "transport-ground": ("vehicle", "land vehicle", "something to travel in"),
    "transport-water": ("vehicle", "boat", "ship", "vehicle on water"),
    "transport-air": ("vehicle", "aircraft", "vehicle that flies", "something that flies"),
    "transport-sign": ("sign",),
    "time": ("time", "clock"),
    "sky-weather": ("weather", "sky"),
    "event": ("celebration", "party"),
    "award-medal": ("award", "medal", "prize"),
    "sport": ("sport", "sports equipment"),
    "game": ("game", "toy", "something to play with"),
    "clothing": ("clothes", "something to wear", "clothing"),
    "sound": ("sound",),
    "music": ("music",),
    "musical-instrument": ("musical instrument", "music", "something to play music on"),
    "phone": ("phone",),
    "computer": ("computer", "electronics"),
    "book-paper": ("paper", "something to read"),
    "money": ("money", "finance"),
    "mail": ("mail", "post"),
    "writing": ("something to write with", "writing"),
    "office": ("office supplies", "office"),
    "tool": ("tool", "something to work with"),
    "science": ("science", "laboratory"),
    "medical": ("medicine", "health", "hospital"),
    "household": ("household item", "furniture", "thing at home"),
    "arrow": ("arrow", "direction"),
    "zodiac": ("zodiac sign", "astrology"),
    "religion": ("religious symbol", "religion"),
    "keycap": ("number", "digit"),
    "geometric": ("shape", "geometric shape"),
    "flag": ("flag",),
    "country-flag": ("flag", "country", "national flag"),
}
_SKIN = re.compile(r"skin-tone|-(dark|light|medium)$")


@dataclass
class Emoji:
    """One class of the training set: an emoji, or a drawing known by its own name only."""

    key: str
    name: str
    keywords: list[str]
    kinds: list[str]
    group: str
    subgroup: str = ""


def slug(name: str) -> str:
    """Return a name as lower-case ASCII letters and digits joined by hyphens."""
    plain = name.lower().replace("*", "asterisk").replace("#", "hash")
    plain = unicodedata.normalize("NFKD", re.sub("['\u2019]", "", plain))
    return re.sub(r"[^a-z0-9]+", "-", plain.encode("ascii", "ignore").decode()).strip("-")


def _spoken(label: str) -> str:
    """Turn CLDR's label into words: "flag: Japan" becomes "flag of Japan"."""
    label = re.sub(r"^flag: ", "flag of ", label.replace("\u2019", "'"))
    return re.sub("[:\u201c\u201d]", "", label)


def _kinds(subgroup: str) -> list[str]:
    return [word for key, words in KINDS.items() if subgroup.startswith(key) for word in words]


def load_emoji(cache: Path) -> dict[str, Emoji]:
    """Return the emoji without skin tones by hexcode ("1f1ef-1f1f5", no variation selectors)."""
    base, lib = (download(cache, package) for package in WORD_PACKAGES)
    meta = json.loads((base / "meta/groups.json").read_text("utf-8"))
    extra = json.loads((lib / "dist/emoji-en-US.json").read_text("utf-8"))
    found: dict[str, Emoji] = {}
    for row in json.loads((base / "en/data.json").read_text("utf-8")):
        if "subgroup" not in row:  # the letters that flags are spelt with
            continue
        key = row["hexcode"].lower().replace("-fe0f", "")
        name = _spoken(row["label"])
        words = [*row.get("tags", ()), *extra.get(row["emoji"], ())]
        clean = {word.replace("_", " ").lower().strip() for word in words}
        keywords = sorted(w for w in clean - {name} if re.fullmatch(r"[a-z0-9][a-z0-9' -]+", w))
        subgroup = meta["subgroups"][str(row["subgroup"])]
        group = meta["groups"][str(row["group"])]
        found[key] = Emoji(key, name, keywords, _kinds(subgroup), group, subgroup)
    return found


class Matcher:
    """Finds the emoji that a drawing shows, by code points or else by name."""

    def __init__(self, emoji: dict[str, Emoji]) -> None:
        self.emoji = emoji
        self.by_name: dict[str, str] = {}
        for item in emoji.values():
            self._alias(item.name, item.key)
        for item in emoji.values():
            if item.name.startswith("flag of "):
                self._alias(item.name.replace("flag of ", "flag for "), item.key)
                self._alias(item.name.replace("flag of ", ""), item.key)
            if "-" not in item.key:  # older sets use the character's formal Unicode name
                self._alias(unicodedata.name(chr(int(item.key, 16)), item.name), item.key)

    def _alias(self, name: str, key: str) -> None:
        self.by_name.setdefault(slug(name).replace("-", ""), key)

    def learn(self, icons: list[Icon]) -> None:
        """Take over the names of drawings whose code points are known."""
        for icon in icons:
            if icon.hexcode in self.emoji:
                self.by_name.setdefault(icon.name.replace("-", ""), str(icon.hexcode))

    def match(self, icon: Icon) -> str | None:
        """Return the hexcode of the emoji drawn, or None."""
        if icon.hexcode is not None:
            code = icon.hexcode.replace("-fe0f", "")
            return code if code in self.emoji else None
        name = re.sub(r"-\d$", "", icon.name) if icon.name[:1].isalpha() else icon.name
        squeezed = name.replace("-", "")
        if squeezed in self.by_name:
            return self.by_name[squeezed]
        bare = re.sub(r"(face|symbol|sign|icon|button)$", "", squeezed)
        for guess in (bare, bare + "face", bare + "button"):
            if guess in self.by_name:
                return self.by_name[guess]
        return None

    def own_class(self, icon: Icon) -> Emoji | None:
        """Make a class of a drawing that is no emoji, known by its own name."""
        name = re.sub(r"-\d$", "", icon.name)
        if _SKIN.search(name) or not name[:1].isalpha():
            return None
        return Emoji(f"own-{name}", name.replace("-", " "), [], [], "")
