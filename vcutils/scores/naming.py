"""Does a caption name what is seen? Things and changes of each scene, where a corpus knows them (events.json)."""

from collections.abc import Mapping
from typing import Any

from vcutils.vocab import tokenize


def naming(captions: Mapping[str, str], events: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """How much of the true events the captions name; `events` as `measures.read_events` gives them.

    Returns shares from 0 to 1, None of nothing: "things" named; "changes" named between their thing's name and the next
    thing's; "complete" clips of three scenes, with all their things named. "scenes" and "triples" (clips of three
    scenes) are what they are shares of.
    """
    every_thing = {
        w for clip in events.values() for event in clip["events"] if event["kind"] == "thing" for w in event["words"]
    }
    things = changes = scenes = complete = triples = 0
    for video_id, caption in captions.items():
        if video_id not in events:
            continue
        known = events[video_id]["events"]
        true = [event for event in known if event["kind"] == "thing"]
        change_at = {event["start"]: event["words"] for event in known if event["kind"] == "change"}
        words, named = tokenize(caption), 0
        for thing, change in ((event["words"], change_at.get(event["start"], ())) for event in true):
            place = next((i for i, word in enumerate(words) if word in thing), None)
            if place is None:
                continue
            named += 1
            others = (i for i in range(place, len(words)) if words[i] in every_thing and words[i] not in thing)
            changes += any(word in change for word in words[place : next(others, len(words))])
        things, scenes = things + named, scenes + len(true)
        if len(true) == 3:
            triples, complete = triples + 1, complete + (named == 3)
    shares = {"things": things / scenes if scenes else None, "changes": changes / scenes if scenes else None}
    return shares | {"complete": complete / triples if triples else None, "scenes": scenes, "triples": triples}
