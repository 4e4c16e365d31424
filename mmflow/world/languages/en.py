"""English."""

from mmflow.world.languages.table import Language

ENGLISH = Language(
    name="English",
    articles={"a": "a", "the": "the"},
    shapes="circle, square, triangle, cross, ring, diamond",
    sizes="small, big",
    colours="red, green, blue, yellow, purple, cyan, orange, white",
    order="{article} {size} {colour} {noun}",
    places="""on the left, in the middle, on the right, at the top, at the bottom,
        at the top left, at the top in the middle, at the top right,
        on the left at mid height, in the centre, on the right at mid height,
        at the bottom left, at the bottom in the middle, at the bottom right""",
    doings="""does not move, moves to the left, moves to the right, moves up, moves down, makes a sound, flashes""",
    that="that",
    relations="to the left of, to the right of, above, below",
    styles="in flat colours, in outline, with shading, with stripes",
    backgrounds="plain, a gradient, noisy, checked",
    conjunction="and",
    then="then",
    denials="no not never nothing none without",
    joined=((r"\ba (?=[aeiou])", "an "),),
    parted={"an": "a"},
    sentences={
        "things": [
            "{0}", "there is {0}", "the picture shows {0}", "you can see {0}", "in the picture there is {0}",
            "here we have {0}",
        ],
        "also": ["there is also {0}", "you can also see {0}", "in addition there is {0}", "we also have {0}"],
        "relation": [
            "{0} is {relation} {1}", "you can see {0} {relation} {1}", "{relation} {1} is {0}",
            "{0} can be found {relation} {1}",
        ],
        "does": ["{0} {main}", "you can see that {0} {sub}", "we see that {0} {sub}", "notice that {0} {sub}"],
        "heard": ["{0} {main}", "you can hear {0}", "a sound comes from {0}", "{0} can be heard"],
        "order": [
            "first {0} makes a sound{rest}", "first you hear {0}{rest}", "at the beginning you hear {0}{rest}",
            "{0} is heard first{rest}",
        ],
        "style": ["everything is drawn {word}", "all shapes are drawn {word}", "the shapes appear {word}"],
        "background": [
            "the background is {word}", "the canvas is {word}", "behind the shapes the background is {word}"
        ],
    },
)  # fmt: skip
