"""Dutch."""

from mmflow.world.languages.table import Language

DUTCH = Language(
    name="Dutch",
    genders="cn",
    articles={"a": "een een", "the": "de het"},
    agreement={"a": "01", "the": "00"},
    shapes="cirkel c, vierkant n, driehoek c, kruis n, ring c, ruit c",
    sizes="kleine klein, grote groot",
    colours="rode rood, groene groen, blauwe blauw, gele geel, paarse paars, turquoise, oranje, witte wit",
    order="{article} {size} {colour} {noun}",
    places="""links, in het midden, rechts, bovenaan, onderaan,
        linksboven, bovenaan in het midden, rechtsboven,
        links op halve hoogte, precies in het midden, rechts op halve hoogte,
        linksonder, onderaan in het midden, rechtsonder""",
    doings="""beweegt niet | niet beweegt, beweegt naar links | naar links beweegt,
        beweegt naar rechts | naar rechts beweegt, beweegt naar boven | naar boven beweegt,
        beweegt naar beneden | naar beneden beweegt, maakt een geluid | een geluid maakt, licht op | oplicht""",
    that="die dat",
    relations="links van, rechts van, boven, onder",
    styles="in vlakke kleuren, alleen in omtrek, met schaduw, met strepen",
    backgrounds="effen, een kleurverloop, korrelig, geruit",
    conjunction="en",
    then="dan",
    denials="niet geen nooit niets zonder",
    sentences={
        "things": [
            "{0}", "{0:er is|er zijn} {0}", "de afbeelding toont {0}", "je ziet {0}",
            "op de afbeelding {0:staat|staan} {0}", "hier hebben we {0}",
        ],
        "also": [
            "{0:er is|er zijn} ook {0}", "je ziet ook {0}", "daarnaast zie je {0}", "verder hebben we {0}"
        ],
        "relation": [
            "{0} staat {relation} {1}", "je ziet {0} {relation} {1}", "{relation} {1} staat {0}",
            "{0} bevindt zich {relation} {1}",
        ],
        "does": ["{0} {main}", "je ziet dat {0} {sub}", "we zien dat {0} {sub}", "merk op dat {0} {sub}"],
        "heard": ["{0} {main}", "je hoort {0}", "een geluid komt van {0}", "{0} is te horen"],
        "order": [
            "eerst klinkt {0}{rest}", "eerst hoor je {0}{rest}", "in het begin hoor je {0}{rest}",
            "{0} is het eerst te horen{rest}",
        ],
        "style": ["alles is {word} getekend", "alle vormen zijn {word} getekend", "de vormen zijn {word} te zien"],
        "background": [
            "de achtergrond is {word}", "het doek is {word}", "achter de vormen is de achtergrond {word}"
        ],
    },
)  # fmt: skip
