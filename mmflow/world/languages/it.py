"""Italian."""

from mmflow.world.languages.table import Language

ITALIAN = Language(
    name="Italian",
    genders="mf",
    articles={"a": "un una", "the": "il la"},
    agreement={"a": "01", "the": "01"},
    shapes="cerchio m, quadrato m, triangolo m, croce f, anello m, rombo m",
    sizes="piccolo piccola, grande",
    colours="rosso rossa, verde, blu, giallo gialla, viola, ciano, arancione, bianco bianca",
    order="{article} {size} {noun} {colour}",
    places="""a sinistra, in mezzo, a destra, in alto, in basso,
        in alto a sinistra, in alto al centro, in alto a destra,
        a sinistra a metà altezza, al centro, a destra a metà altezza,
        in basso a sinistra, in basso al centro, in basso a destra""",
    doings="""non si muove, si muove verso sinistra, si muove verso destra, si muove verso l'alto,
        si muove verso il basso, emette un suono, lampeggia""",
    that="che che",
    relations="a sinistra di, a destra di, sopra, sotto",
    styles="con colori piatti, solo con il contorno, con ombre, a strisce",
    backgrounds="uniforme, sfumato, granuloso, a scacchi",
    conjunction="e",
    then="poi",
    denials="non nessun nessuna nessuno mai niente senza",
    joined=(
        (r"\b(il|la) (?=[aeiou])", "l'"), (r"\bdi il\b", "del"), (r"\bdi l(?='|a\b)", "dell"),
        (r"\bda il\b", "dal"), (r"\bda l(?='|a\b)", "dall"),
    ),
    parted={
        "l'": "il", "del": "di il", "dell'": "di il", "della": "di la", "dal": "da il", "dall'": "da il",
        "dalla": "da la",
    },
    sentences={
        "things": [
            "{0}", "{0:c'è|ci sono} {0}", "la figura mostra {0}", "{0:si vede|si vedono} {0}",
            "nella figura {0:c'è|ci sono} {0}", "qui abbiamo {0}",
        ],
        "also": [
            "{0:c'è|ci sono} anche {0}", "{0:si vede|si vedono} anche {0}", "inoltre {0:c'è|ci sono} {0}",
            "abbiamo anche {0}",
        ],
        "relation": [
            "{0} è {relation} {1}", "si vede {0} {relation} {1}", "{relation} {1} c'è {0}",
            "{0} si trova {relation} {1}",
        ],
        "does": ["{0} {main}", "si vede che {0} {sub}", "vediamo che {0} {sub}", "nota che {0} {sub}"],
        "heard": ["{0} {main}", "si sente {0}", "un suono viene da {0}", "{0} si fa sentire"],
        "order": [
            "prima suona {0}{rest}", "prima si sente {0}{rest}", "all'inizio si sente {0}{rest}",
            "per cominciare suona {0}{rest}",
        ],
        "style": [
            "tutto è disegnato {word}", "tutte le forme sono disegnate {word}", "le forme appaiono {word}"
        ],
        "background": ["lo sfondo è {word}", "il fondo è {word}", "dietro le forme lo sfondo è {word}"],
    },
)  # fmt: skip
