"""French."""

from mmflow.world.languages.table import Language

FRENCH = Language(
    name="French",
    genders="mf",
    articles={"a": "un une", "the": "le la"},
    agreement={"a": "01", "the": "01"},
    shapes="cercle m, carré m, triangle m, croix f, anneau m, losange m",
    sizes="petit petite, grand grande",
    colours="rouge, vert verte, bleu bleue, jaune, violet violette, cyan, orange, blanc blanche",
    order="{article} {size} {noun} {colour}",
    places="""à gauche, au milieu, à droite, en haut, en bas,
        en haut à gauche, en haut au milieu, en haut à droite,
        à gauche à mi-hauteur, au centre, à droite à mi-hauteur,
        en bas à gauche, en bas au milieu, en bas à droite""",
    doings="""ne bouge pas, se déplace vers la gauche, se déplace vers la droite, se déplace vers le haut,
        se déplace vers le bas, émet un son, clignote""",
    that="qui qui",
    relations="à gauche de, à droite de, au-dessus de, en dessous de",
    styles="en aplat, en contour, avec des ombres, avec des rayures",
    backgrounds="uni, en dégradé, granuleux, en damier",
    conjunction="et",
    then="puis",
    denials="ne n' pas aucun aucune jamais rien sans",
    joined=((r"\b(le|la) (?=[aeiou])", "l'"), (r"\bde le\b", "du"), (r"\bde (?=une?\b)", "d'")),
    parted={"l'": "le", "du": "de le", "d'": "de"},
    sentences={
        "things": [
            "{0}", "il y a {0}", "l'image montre {0}", "on voit {0}", "sur cette image il y a {0}",
            "ici nous avons {0}",
        ],
        "also": ["il y a aussi {0}", "on voit aussi {0}", "de plus il y a {0}", "nous avons aussi {0}"],
        "relation": [
            "{0} est {relation} {1}", "on voit {0} {relation} {1}", "{relation} {1} se trouve {0}",
            "{0} se situe {relation} {1}",
        ],
        "does": ["{0} {main}", "on voit que {0} {sub}", "nous voyons que {0} {sub}", "remarquez que {0} {sub}"],
        "heard": ["{0} {main}", "on entend {0}", "un son vient de {0}", "{0} se fait entendre"],
        "order": [
            "d'abord {0} émet un son{rest}", "on entend d'abord {0}{rest}", "au début on entend {0}{rest}",
            "{0} se fait entendre en premier{rest}",
        ],
        "style": [
            "tout est dessiné {word}", "toutes les formes sont dessinées {word}", "les formes apparaissent {word}"
        ],
        "background": [
            "le fond est {word}", "l'arrière-plan est {word}", "derrière les formes le fond est {word}"
        ],
    },
)  # fmt: skip
