"""German."""

from mmflow.world.languages.table import Language


def _declined(stems: str) -> str:
    return ", ".join(" ".join(stem + ending for ending in ("e", "er", "es", "en")) for stem in stems.split())


GERMAN = Language(
    name="German",
    genders="mfn",
    articles={
        "a nom": "ein eine ein", "a acc": "einen eine ein", "a dat": "einem einer einem",
        "the nom": "der die das", "the acc": "den die das", "the dat": "dem der dem",
    },
    agreement={
        "a nom": "102", "a acc": "302", "a dat": "333", "the nom": "000", "the acc": "300", "the dat": "333"
    },
    shapes="kreis m, quadrat n, dreieck n, kreuz n, ring m, raute f",
    sizes=_declined("klein groß"),
    colours=_declined("rot grün blau gelb violett türkisfarben orangefarben weiß"),
    order="{article} {size} {colour} {noun}",
    places="""links, in der mitte, rechts, oben, unten,
        oben links, oben in der mitte, oben rechts,
        links auf halber höhe, genau in der mitte, rechts auf halber höhe,
        unten links, unten in der mitte, unten rechts""",
    doings="""bewegt sich nicht | sich nicht bewegt, bewegt sich nach links | sich nach links bewegt,
        bewegt sich nach rechts | sich nach rechts bewegt, bewegt sich nach oben | sich nach oben bewegt,
        bewegt sich nach unten | sich nach unten bewegt, gibt einen ton von sich | einen ton von sich gibt,
        leuchtet auf | aufleuchtet""",
    that="der die das",
    relative=", {that} {doing},",
    relations="links von, rechts von, über, unter",
    styles="flächig, im umriss, schattiert, gestreift",
    backgrounds="einfarbig, ein farbverlauf, körnig, kariert",
    conjunction="und",
    then="dann",
    denials="kein keine keinen keinem keiner nicht nie nichts ohne",
    joined=((r"\bvon dem\b", "vom"),),
    parted={"vom": "von dem"},
    sentences={
        "things": [
            "{0}", "es gibt {0:acc}", "das bild zeigt {0:acc}", "man sieht {0:acc}",
            "auf dem bild sieht man {0:acc}", "hier haben wir {0:acc}",
        ],
        "also": [
            "außerdem gibt es {0:acc}", "man sieht auch {0:acc}", "dazu gibt es {0:acc}",
            "ferner haben wir {0:acc}",
        ],
        "relation": [
            "{0} ist {relation} {1:dat}", "man sieht {0:acc} {relation} {1:dat}", "{relation} {1:dat} ist {0}",
            "{0} befindet sich {relation} {1:dat}",
        ],
        "does": ["{0} {main}", "man sieht, dass {0} {sub}", "wir sehen, dass {0} {sub}", "beachte, dass {0} {sub}"],
        "heard": ["{0} {main}", "man hört {0:acc}", "ein ton kommt von {0:dat}", "{0} ist zu hören"],
        "order": [
            "zuerst ertönt {0}{rest}", "zuerst hört man {0:acc}{rest:acc}", "am anfang hört man {0:acc}{rest:acc}",
            "{0} ist zuerst zu hören{rest}",
        ],
        "style": [
            "alles ist {word} gezeichnet", "alle formen sind {word} gezeichnet", "die formen erscheinen {word}"
        ],
        "background": [
            "der hintergrund ist {word}", "die leinwand ist {word}", "hinter den formen ist der hintergrund {word}"
        ],
    },
)  # fmt: skip
