"""Does a caption name what is seen? Things and changes of each scene, where a corpus knows them (events.json)."""

from collections.abc import Mapping
from typing import Any

from vcutils.vocab import tokenize


def naming(captions: Mapping[str, str], events: Mapping[str, dict[str, Any]]) -> dict[str, float | int]:
    """How much of the true events the captions name; `events` as `measures.read_events` gives them.

    Returns shares from 0 to 1 and how many they are of: "things" named, "changes" named between their thing's name
    and the next thing's, and "complete" clips of three scenes, with all their things named; "scenes" and "triples"
    (clips of three scenes) are the counts.
    """
    every_thing = {
        w for clip in events.values() for event in clip["events"] if event["kind"] == "thing" for w in event["words"]
    }
    things = changes = scenes = complete = triples = 0
    for video_id, caption in captions.items():
        if video_id not in events:
            continue
        true = {
            kind: [e["words"] for e in events[video_id]["events"] if e["kind"] == kind] for kind in ("thing", "change")
        }
        words, named = tokenize(caption), 0
        for thing, change in zip(true["thing"], true["change"], strict=True):
            place = next((i for i, word in enumerate(words) if word in thing), None)
            if place is None:
                continue
            named += 1
            others = (i for i in range(place, len(words)) if words[i] in every_thing and words[i] not in thing)
            changes += any(word in change for word in words[place : next(others, len(words))])
        things, scenes = things + named, scenes + len(true["thing"])
        if len(true["thing"]) == 3:
            triples, complete = triples + 1, complete + (named == 3)
    return {
        "things": things / max(1, scenes),
        "changes": changes / max(1, scenes),
        "complete": complete / max(1, triples),
        "scenes": scenes,
        "triples": triples,
    }
