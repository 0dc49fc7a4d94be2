"""Film reviews from a probabilistic grammar: about eight hundred words, negations, intensifiers and mixed feelings.

A review is an opening, which tells nothing of the verdict and serves as a prompt, and a few sentences in a tone that
holds throughout. Names, genre and place are drawn once a review, so that a model has something to remember.
"""

import random
import re

# Symbols ending in + or - carry a feeling, all others none. Most words of feeling stand in a sentiment lexicon, some
# (gripping, tedious) do not.
WORDS = {
    "adjective+": """amazing awesome beautiful bold brave brilliant captivating charming cheerful clever compelling
        confident creative dazzling delightful elegant energetic engaging enjoyable entertaining excellent exciting
        fabulous fantastic fascinating fearless fine flawless fresh friendly fun funny generous gentle glorious good
        gorgeous graceful great gripping heartfelt heroic hilarious honest impressive ingenious inspired inspiring
        intelligent interesting joyful likable lively lovely magnificent marvelous masterful memorable nice original
        outstanding passionate perfect playful pleasant powerful profound radiant refreshing remarkable romantic
        satisfying sensitive sincere smart soothing spectacular splendid strong stunning sublime superb sweet talented
        tender terrific thoughtful thrilling touching uplifting vibrant vivid warm wise witty wonderful""",
    "adjective-": """absurd annoying appalling atrocious awful bad bland bleak boring careless cheap clumsy confused
        confusing cruel crude depressing desperate disappointing disgusting dismal dreadful dreary dull dumb
        embarrassing empty exhausting fake flat foolish forgettable frustrating gloomy harsh hateful hollow hopeless
        horrible idiotic incoherent insulting irritating lame lazy lifeless lousy ludicrous mediocre messy miserable
        nasty obnoxious offensive painful pathetic pointless poor predictable pretentious ridiculous sad shallow
        shameful silly sloppy stale stupid tasteless tedious terrible tired tiresome ugly unbearable uncomfortable
        unconvincing unfunny uninspired unpleasant useless vile vulgar weak weird wooden worthless wrong""",
    "adjective": """american ancient animated autumn average blue british candid classical complex contemporary crowded
        domestic early famous foreign french german grey handheld historical indie italian japanese korean large late
        loud low-budget minimal modern musical narrow nocturnal noisy ordinary quick quiet recent red rural
        scandinavian second serious short silent slow small soft southern spanish strange subtle traditional typical
        unusual urban usual visual western wide winter young""",
    "noun+": """beauty charm comfort delight fun gem gift hit inspiration joy masterpiece miracle pleasure sensation
        success surprise treasure treat triumph winner wonder""",
    "noun-": """bore chore disappointment disaster disgrace embarrassment failure flop fraud headache insult joke loss
        mess misery nightmare pain shame torture tragedy waste""",
    "quality+": """beauty charm courage energy grace heart honesty humor imagination joy passion talent warmth wisdom
        wit""",
    "quality-": "boredom chaos clichés confusion cruelty gloom greed hate nonsense noise pain stupidity violence",
    "verdict+": "admired adored applauded appreciated cherished enjoyed liked loved praised treasured",
    "verdict-": "despised detested disliked endured hated loathed mocked rejected regretted resented",
    "person_verb+": "charms dazzles delights excels glows impresses inspires shines sparkles succeeds surprises wins",
    "person_verb-": """annoys bores disappoints fails grates irritates mumbles overacts sleepwalks stumbles suffers
        struggles""",
    "adverb+": "beautifully brilliantly cleverly elegantly gracefully perfectly skillfully superbly wonderfully",
    "adverb-": "awfully badly carelessly clumsily horribly lazily painfully poorly terribly",
    "intensifier": """absolutely completely deeply especially extremely incredibly particularly really remarkably so
        thoroughly totally truly utterly very""",
    "softener": "almost fairly kinda partly quite rather slightly somewhat",
    "aspect": """acting animation atmosphere camerawork casting cinematography climax costumes dialogue direction
        editing ending finale humor lighting makeup music narration pacing performance photography plot premise
        production soundtrack score screenplay script setting sound storytelling subplot title voiceover writing""",
    "scene": """argument ball breakfast chase confession courtroom dance dinner duel escape farewell flashback funeral
        garden hospital hotel interview journey kitchen market opening picnic prologue rehearsal reunion rooftop storm
        train trial voyage wedding""",
    "role": """actor actress aunt baker boy captain cook cop dancer daughter detective doctor driver farmer father
        gardener girl grandmother journalist judge lawyer mother musician narrator neighbor nurse painter pilot poet
        sailor sister soldier son student teacher twin uncle waiter writer""",
    "act": """buys carries changes closes collects copies describes discovers draws examines explains finds follows
        gathers hears hides keeps leaves moves notices observes opens packs paints photographs reads remembers repairs
        returns sells sends shows sketches studies turns watches""",
    "move": """answers arrives calls dances enters listens pauses sings sits sleeps speaks stands travels waits walks
        writes""",
    "object": """book boat bridge camera car clock coat diary door house key ladder lamp letter map mirror newspaper
        notebook painting parcel phone photograph piano radio recipe ring river suitcase table tape telescope ticket
        train violin window""",
    "genre": """adaptation anthology biopic comedy documentary drama fable fantasy film heist melodrama movie musical
        mystery noir parody picture production remake romance satire sequel thriller western""",
    "place": """amsterdam athens berlin boston brooklyn cairo chicago dublin geneva glasgow helsinki istanbul kyoto
        lagos lima lisbon london madrid marseille mexico montreal mumbai naples oslo paris prague rome seoul tokyo
        venice vienna warsaw""",
    "time": """afternoon autumn evening friday holiday monday month morning night saturday spring sunday weekend winter
        year""",
    "company": """brother class colleague cousin daughter father flatmate grandson husband mother neighbor sister son
        wife""",
    "venue": "basement cinema festival gallery hotel library museum opera school theater village",
    "first": """ada amir anna bruno carla chen clara david diego elena emma felix fatima george hana hugo ines ivan
        james jonas kenji laura leon lucia marco maria milan nadia nora omar oscar petra rosa samir sofia tomas vera
        yuki""",
    "last": """abbott almeida baker bergman castillo costa dubois fischer gallo hansen ibrahim jansen kowalski
        lindgren marsh moreau nakamura novak okafor ortiz park petrov quinn romero rossi sato silva tanaka varga
        weber winter""",
    "number": "two three four five six seven ten twenty",
}

RULES = {
    "opening": [
        "i watched this {adjective} {genre} with my {company} last {time} .",
        "my {company} and i saw this {genre} in {place} last {time} .",
        "this {adjective} {genre} by {director} is set in {place} .",
        "{director} made this {genre} in {place} {number} years ago .",
        "we saw the new {genre} by {director} at the {venue} .",
        "in this {genre} a {role} from {place} {act} a {adjective} {object} .",
        "{lead} plays a {adjective} {role} in this {genre} .",
        "after {number} years {director} returns with a {adjective} {genre} .",
        "the {genre} follows a {role} who {act} a {object} in {place} .",
        "i rented this {genre} because of {lead} .",
    ],
    "sentence": [
        "the story begins with a {scene} in {place} .",
        "{lead} {act} a {object} and a {role} {act} the {adjective} {object} .",
        "there is a {adjective} {scene} near the {object} .",
        "it runs for {number} hours and has {number} songs .",
        "most of it happens in a {venue} in {place} .",
        "the {role} {move} before the {scene} , then {act} again .",
        "the {adjective} {aspect} reminded me of {director} .",
    ],
    "sentence+": [
        "the {aspect} is {very+} and the {aspect} is {very+} .",
        "the {aspect} was {very+} !",
        "{lead} is {very+} as the {role} .",
        "{lead} {person_verb+} in the {scene} scene .",
        "i {verdict+} the {aspect} and my {company} {verdict+} the {scene} .",
        "it is a {adjective+} {genre} , full of {quality+} and {quality+} .",
        "what a {noun+} this {genre} is !",
        "the {scene} is {adverb+} filmed and the {role} is {adjective+} .",
        "{director} directs {adverb+} , with {quality+} and {quality+} .",
        "the {aspect} is never {adjective-} .",
        "there is nothing {adjective-} about the {aspect} .",
        "at first it seems {adjective-} , but the {aspect} is {very+} .",
        "i laughed at the {scene} and {verdict+} every minute .",
        "a {adjective+} {aspect} makes the {scene} a {noun+} .",
        "i recommend it to every {role} , it is {very+} .",
    ],
    "sentence-": [
        "the {aspect} is {very-} and the {aspect} is {very-} .",
        "the {aspect} was {very-} !",
        "{lead} is {very-} as the {role} .",
        "{lead} {person_verb-} in the {scene} scene .",
        "i {verdict-} the {aspect} and my {company} {verdict-} the {scene} .",
        "it is a {adjective-} {genre} , full of {quality-} and {quality-} .",
        "what a {noun-} this {genre} is !",
        "the {scene} is {adverb-} filmed and the {role} is {adjective-} .",
        "{director} directs {adverb-} , with {quality-} and {quality-} .",
        "the {aspect} is not {adjective+} at all .",
        "there is nothing {adjective+} about the {aspect} .",
        "it could have been {adjective+} , but the {aspect} is {very-} .",
        "i yawned at the {scene} and {verdict-} every minute .",
        "a {adjective-} {aspect} makes the {scene} a {noun-} .",
        "avoid it , the {aspect} is {very-} .",
    ],
    "very+": [
        "{adjective+}",
        "{adjective+}",
        "{intensifier} {adjective+}",
        "{softener} {adjective+}",
        "not {adjective-}",
    ],
    "very-": [
        "{adjective-}",
        "{adjective-}",
        "{intensifier} {adjective-}",
        "{softener} {adjective-}",
        "not {adjective+}",
    ],
    "lead": ["{first} {last}"],
    "director": ["{first} {last}"],
} | {symbol: words.split() for symbol, words in WORDS.items()}

# Drawn once a review.
BOUND = ("genre", "lead", "director", "place")

# Tone of a review: how often a sentence is positive, neutral, negative.
TONES = ((0.75, 0.2, 0.05), (0.4, 0.2, 0.4), (0.05, 0.2, 0.75))


class Reviewer:
    """Writes reviews, the same ones for the same seed. All tokens, punctuation too, are separated by one space."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def opening(self) -> str:
        """An opening without a verdict."""
        return self._write("opening", {})

    def review(self) -> str:
        """An opening and two to four sentences in one tone."""
        bound = {symbol: self._write(symbol, {}) for symbol in BOUND}
        tone = self.random.choice(TONES)
        sentences = self.random.choices(("sentence+", "sentence", "sentence-"), tone, k=self.random.randint(2, 4))
        return " ".join(self._write(symbol, bound) for symbol in ("opening", *sentences))

    def _write(self, symbol: str, bound: dict[str, str]) -> str:
        if symbol in bound:
            return bound[symbol]
        rule = self.random.choice(RULES[symbol])
        text = re.sub(r"\{(.+?)\}", lambda match: self._write(match[1], bound), rule)
        return re.sub(r"\ba (?=[aeio]|hon|u(?!s))", "an ", text)


def vocabulary() -> list[str]:
    """Every word and sign that a review can hold, sorted."""
    texts = (re.sub(r"\{.+?\}", " ", rule) for rules in RULES.values() for rule in rules)
    return sorted({"an", *(word for text in texts for word in text.split())})
