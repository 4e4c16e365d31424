"""A small grammar of English: unlimited sentences over about seven hundred words with every English phone.

Only the letters a to z, the apostrophe and single spaces occur, so that a transcript needs no normalisation. Words
whose sound depends on their meaning ("read", "live", "close") are left out: the transcript alone decides what is heard.
"""

import itertools
from typing import NamedTuple

import numpy as np

_WORDS = {
    symbol: words.split()
    for symbol, words in {
        "PERSON": """
            baby baker boy brother captain cousin doctor farmer father girl judge king lawyer mother neighbour nurse
            painter pilot queen sailor singer sister soldier teacher thief uncle visitor
        """,
        "NAME": """
            alice arthur beth charles george helen jack joyce judith keith lucy martha mike oliver ruth sophie thomas
            zoe
        """,
        "ANIMAL": """
            bear bird cat cow dog duck fish fox goat horse lion monkey mouse owl sheep snake tiger whale wolf
        """,
        "THING": """
            apple bag basket bell boat book bottle box bread bridge brush button cake candle cart chair cheese clock
            coat coin cup door drum feather fence flag flower glove hammer hat jacket jewel key knife lamp leaf letter
            machine map medal moon needle orange paper pencil pie pillow pipe plate purse ring rope sandwich shell
            shirt shoe song spoon stone sugar table toy treasure tree vase wagon watch wheel whistle window
        """,
        "SITE": """
            barn beach cabin castle cave church city corner farm forest garage garden harbour hill house island jungle
            kitchen market mountain office park path pool river road school shop street tower village wood zoo
        """,
        "ABSTRACT": """
            advice beauty choice courage danger decision doubt dream energy future honour idea joke joy knowledge luck
            measure music noise pleasure power question reason secret silence story success thought truth vision voice
        """,
        "ADJECTIVE": """
            angry beautiful big black blue brave broken brown calm cheap clean clever cold curious dark deep dry dusty
            early empty enormous famous fancy foolish fresh funny gentle golden good great green happy heavy high
            honest huge hungry joyful large lazy little lonely long lovely narrow new noisy old pale precious proud
            pure quick quiet red rich rough round royal sad sharp short silver simple slow small smooth soft strange
            strong sweet tall thick thin thirsty tiny ugly usual warm wet white whole wide wild wise wonderful wooden
            wrong yellow young
        """,
        "TRANSITIVE": """
            bought brought carried caught changed chased chose counted covered dropped enjoyed examined followed
            forgot found gave guarded heard imagined joined judged kicked lifted loved measured missed moved noticed
            offered pulled pushed remembered saved saw sold stole studied threw touched understood valued wanted
            washed watched wished
        """,
        "INTRANSITIVE": """
            agreed appeared arrived breathed danced escaped fell flew froze hurried jumped laughed listened marched
            paused played prayed ran rested returned shivered shouted slept smiled stayed stood swam talked travelled
            waited walked whispered worked yawned
        """,
        "BASE": """
            answer ask believe borrow bring build buy call carry catch change choose cook draw drink enjoy explain
            feed find follow forget give hear help hold imagine join keep know leave look make measure move need open
            paint pull push reach remember see sell send share show sing speak start stop study teach think throw
            touch visit wait wash watch write
        """,
        "ADVERB": """
            again alone always angrily away badly boldly bravely calmly carefully early easily gently gladly happily
            hardly honestly loudly nearly never often once politely proudly quickly quietly rarely sadly safely
            sharply slowly smoothly softly soon strangely suddenly together usually wisely
        """,
        "PREPOSITION": """
            above across against along around behind below beside beyond from inside near outside over past through
            toward under
        """,
        "NUMBER": """
            two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty sixty
        """,
    }.items()
}

_IRREGULAR_PLURALS = {
    "fish": "fish", "knife": "knives", "leaf": "leaves", "mouse": "mice", "sheep": "sheep", "thief": "thieves",
    "wolf": "wolves",
}  # fmt: skip
_SILENT_H = ("honest", "honour", "hour")  # "an hour", although h is a consonant
_SPOKEN_Y = ("usual",)  # "a usual day", although u is a vowel


def _plural(noun: str) -> str:
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeo":
        return noun[:-1] + "ies"
    return noun + "s"


# Symbols are upper case, words lower case, "," is a phrase boundary where a speaker may pause. Each line is chosen
# equally often, so a repeated line is a likelier one.
_RULES: dict[str, list[str]] = _WORDS | {
    "SENTENCE": [
        "CLAUSE",
        "CLAUSE",
        "CLAUSE TIME",
        "TIME , CLAUSE",
        "CLAUSE , JOINER CLAUSE",
        "CLAUSE CONNECTIVE CLAUSE",
        "CONNECTIVE CLAUSE , CLAUSE",
        "SAYING , CLAUSE",
        "SUBJECT knew that CLAUSE",
        "SUBJECT MODAL BASE PLACE",
        "SUBJECT MODAL BASE OBJECT , JOINER CLAUSE",
        "there EXISTED AMOUNT PLACE",
        "EXCLAMATION",
        "QUESTION ?",
        "QUESTION ?",
        "COMMAND",
        "PRESENT",
        "PRESENT , JOINER PRESENT",
    ],
    "CLAUSE": [
        "SUBJECT TRANSITIVE OBJECT",
        "SUBJECT TRANSITIVE OBJECT PLACE",
        "SUBJECT ADVERB TRANSITIVE OBJECT",
        "SUBJECT TRANSITIVE OBJECT and OBJECT",
        "SUBJECT INTRANSITIVE ADVERB",
        "SUBJECT INTRANSITIVE PLACE",
        "SUBJECT INTRANSITIVE and INTRANSITIVE PLACE",
        "SUBJECT was ADJECTIVE and ADJECTIVE",
        "SUBJECT and SUBJECT INTRANSITIVE",
        "SINGULAR PLACE was DEGREE ADJECTIVE",
    ],
    "PRESENT": [
        "i MODAL BASE OBJECT",
        "you MODAL BASE SINGULAR ADVERB",
        "they're DEGREE ADJECTIVE",
        "it's a ADJECTIVE THING , isn't it ?",
        "that's the ADJECTIVE ANIMAL OWNER saw PLACE",
        "what's mine is yours , NAME",
        "we've never been so ADJECTIVE",
        "NAME's ANIMAL is more ADJECTIVE than OWNER's",
        "i'd rather BASE with OWNER than BASE alone",
        "here's a THING for OWNER",
        "NUMBER and NUMBER make NUMBER",
    ],
    "QUESTION": [
        "did SUBJECT BASE OBJECT",
        "why didn't SUBJECT BASE PLACE",
        "where does OWNER keep the ADJECTIVE THING",
        "when will SUBJECT BASE OBJECT",
        "who TRANSITIVE OBJECT TIME",
        "which of the PLURAL was the most ADJECTIVE",
        "how many PLURAL are there PLACE",
        "can't you BASE a ADJECTIVE THING",
        "is OWNER as ADJECTIVE as SINGULAR",
        "haven't they heard about SINGULAR",
    ],
    "COMMAND": [
        "please BASE SINGULAR",
        "don't BASE OBJECT PLACE",
        "let's BASE OBJECT TIME",
        "NAME , BASE the THING and the THING",
        "give OWNER the ADJECTIVE THING , or BASE SINGULAR yourself",
    ],
    "EXCLAMATION": ["what a ADJECTIVE THING", "how ADJECTIVE SINGULAR was", "oh , SUBJECT TRANSITIVE OBJECT"],
    "SAYING": [
        "OWNER said",
        "the PERSON thought",
        "as far as OWNER knew",
        "to OWNER's ABSTRACT",
        "of course",
        "however",
    ],
    "SUBJECT": [
        "SINGULAR",
        "SINGULAR",
        "SINGULAR",
        "PLURALS",
        "NAME",
        "PRONOUN",
        "OWNER's PERSON",
        "the THING of OWNER",
    ],
    "OBJECT": ["SINGULAR", "SINGULAR", "PLURALS", "NAME", "THEM", "OWNER's THING", "OWNER's ABSTRACT", "AMOUNT"],
    "SINGULAR": [
        "DETERMINER NOUN",
        "DETERMINER ADJECTIVE NOUN",
        "DETERMINER ADJECTIVE NOUN",
        "the ADJECTIVE ADJECTIVE NOUN",
    ],
    "PLURALS": ["the PLURAL", "the ADJECTIVE PLURAL", "AMOUNT", "those PLURAL", "our PLURAL"],
    "AMOUNT": [
        "NUMBER PLURAL",
        "NUMBER ADJECTIVE PLURAL",
        "several PLURAL",
        "a few ADJECTIVE PLURAL",
        "no PLURAL at all",
    ],
    "NOUN": ["PERSON", "PERSON", "ANIMAL", "THING", "THING", "THING", "SITE", "ABSTRACT"],
    "PLACE": [
        "PREPOSITION the SITE",
        "PREPOSITION the ADJECTIVE SITE",
        "in DETERMINER THING",
        "on the THING",
        "with NAME",
    ],
    "OWNER": ["NAME", "NAME", "the PERSON", "my PERSON", "everyone", "nobody"],
    "DETERMINER": [
        "the",
        "the",
        "a",
        "a",
        "this",
        "that",
        "his",
        "her",
        "my",
        "your",
        "our",
        "their",
        "every",
        "another",
    ],
    "PRONOUN": ["he", "she", "they", "we", "i", "you", "it"],
    "THEM": ["him", "her", "them", "us", "me", "it", "everything", "nothing"],
    "DEGREE": ["very", "rather", "too", "quite", "so", "almost", "always", "not"],
    "JOINER": ["and", "and", "but", "or", "so", "yet"],
    "CONNECTIVE": ["because", "when", "while", "if", "before", "after", "although", "until", "since", "as though"],
    "MODAL": [
        "will",
        "won't",
        "can",
        "can't",
        "could",
        "couldn't",
        "should",
        "must",
        "might",
        "would",
        "wouldn't",
        "didn't",
    ],
    "EXISTED": ["was once", "were only", "stood", "were"],
    "PLURAL": [_plural(noun) for kind in ("PERSON", "ANIMAL", "THING") for noun in _WORDS[kind]],
    "TIME": [
        "at dawn", "at noon", "before breakfast", "after lunch", "during the storm", "every morning",
        "every thursday", "for an hour", "in april", "in july", "in the evening", "last friday", "last night",
        "last year", "on monday", "on sunday", "on tuesday", "that afternoon", "the other day", "this week",
        "three days ago", "two weeks later", "until august", "yesterday",
    ],
}  # fmt: skip


class Sentence(NamedTuple):
    """What is written and how it is said.

    text: lower-case letters, apostrophes and single spaces. spoken: the same words with commas where a speaker may
    pause and "." or "?" at the end, for a synthesiser."""

    text: str
    spoken: str


def sentence(generator: np.random.Generator) -> Sentence:
    """One random sentence of 2 to about 30 words, its length varying with the rules drawn."""
    tokens = _with_articles(_expand("SENTENCE", generator))
    question = "?" in tokens
    tokens = [token for token in tokens if token != "?"]
    words = [token for token in tokens if token != ","]
    return Sentence(" ".join(words), " ".join(tokens).replace(" ,", ",") + ("?" if question else "."))


def vocabulary() -> list[str]:
    """Every word that a sentence can contain, sorted (possessives such as "lucy's" are counted as two words)."""
    words = {token.removesuffix("'s") for lines in _RULES.values() for line in lines for token in line.split()}
    return sorted({word for word in words if word.islower()} | {"an"})


def _expand(symbol: str, generator: np.random.Generator) -> list[str]:
    lines = _RULES[symbol]
    tokens: list[str] = []
    for token in lines[generator.integers(len(lines))].split():
        if token in _RULES:
            tokens += _expand(token, generator)
        elif token.endswith("'s") and token[:-2] in _RULES:
            *front, owner = _expand(token[:-2], generator)
            tokens += [*front, owner + "'s"]
        else:
            tokens.append(token)
    return tokens


def _with_articles(tokens: list[str]) -> list[str]:
    """ "a" becomes "an" before a vowel sound."""
    result = list(tokens)
    for index, (token, following) in enumerate(itertools.pairwise(tokens)):
        vowel = following.startswith(("a", "e", "i", "o", "u", *_SILENT_H)) and not following.startswith(_SPOKEN_Y)
        if token == "a" and vowel:
            result[index] = "an"
    return result
