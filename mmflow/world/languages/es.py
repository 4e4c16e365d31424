"""Spanish."""

from mmflow.world.languages.table import Language

SPANISH = Language(
    name="Spanish",
    genders="mf",
    articles={"a": "un una", "the": "el la"},
    agreement={"a": "01", "the": "01"},
    shapes="círculo m, cuadrado m, triángulo m, cruz f, anillo m, rombo m",
    sizes="pequeño pequeña, grande",
    colours="rojo roja, verde, azul, amarillo amarilla, morado morada, cian, naranja, blanco blanca",
    order="{article} {noun} {colour} {size}",
    places="""a la izquierda, en el medio, a la derecha, arriba, abajo,
        arriba a la izquierda, arriba en el medio, arriba a la derecha,
        a la izquierda a media altura, en el centro, a la derecha a media altura,
        abajo a la izquierda, abajo en el medio, abajo a la derecha""",
    doings="""no se mueve, se mueve hacia la izquierda, se mueve hacia la derecha, se mueve hacia arriba,
        se mueve hacia abajo, emite un sonido, destella""",
    that="que que",
    relations="a la izquierda de, a la derecha de, por encima de, por debajo de",
    styles="con colores planos, solo con contornos, con sombras, con rayas",
    backgrounds="liso, un degradado, granulado, de cuadros",
    conjunction="y",
    then="luego",
    denials="no ningún ninguna nunca nada sin",
    joined=((r"\bde el\b", "del"),),
    parted={"del": "de el"},
    sentences={
        "things": [
            "{0}", "hay {0}", "la imagen muestra {0}", "podemos ver {0}", "en la imagen hay {0}",
            "aquí tenemos {0}",
        ],
        "also": ["también hay {0}", "también podemos ver {0}", "además hay {0}", "también tenemos {0}"],
        "relation": [
            "{0} está {relation} {1}", "podemos ver {0} {relation} {1}", "{relation} {1} se encuentra {0}",
            "{0} se sitúa {relation} {1}",
        ],
        "does": ["{0} {main}", "se ve que {0} {sub}", "vemos que {0} {sub}", "fíjate en que {0} {sub}"],
        "heard": ["{0} {main}", "se oye {0}", "un sonido viene de {0}", "podemos oír {0}"],
        "order": [
            "primero suena {0}{rest}", "primero se oye {0}{rest}", "al principio se oye {0}{rest}",
            "{0} suena primero{rest}",
        ],
        "style": [
            "todo está dibujado {word}", "todas las formas están dibujadas {word}", "las formas aparecen {word}"
        ],
        "background": ["el fondo es {word}", "el lienzo es {word}", "detrás de las formas el fondo es {word}"],
    },
)  # fmt: skip
