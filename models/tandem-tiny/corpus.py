"""The texts of tandem-tiny: parsed, turned into questions, blurred, and laid out as training samples.

Everything random takes a random.Random, so a sample is a pure function of its seed.
"""

import hashlib
import json
import random
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEXTS = HERE / "texts"
WORDINGS_PER_ANSWER = 30

# ---------------------------------------------------------------- texts


def sections(path):
    """(title, lines) of every `== title` section of a text file."""
    for part in path.read_text(encoding="utf-8").split("== ")[1:]:
        lines = [line.strip() for line in part.strip().split("\n") if line.strip()]
        yield lines[0], lines[1:]


def load_answers():
    answers = {}
    for path in sorted(TEXTS.glob("answers-*.txt")):
        for name, lines in sections(path):
            entry = {"id": name, "text": lines[0], "next": {}, "hand": []}
            for line in lines[1:]:
                kind, _, rest = line.partition(":")
                values = [value.strip() for value in rest.split(" | ")]
                if kind == "q":
                    entry["hand"] += values
                elif kind == "next":
                    entry["next"] = dict(pair.split("=") for pair in rest.split())
                elif kind == "diff":
                    entry.setdefault("diff", []).append([side.strip() for side in rest.split(";")])
                elif kind in ("def", "how", "why", "if", "err"):
                    entry.setdefault(kind, []).extend(values)
                else:
                    raise ValueError(f"{path.name}: {name}: unknown line {line!r}")
            assert name not in answers, name
            answers[name] = entry
    load_patterns(answers)
    for entry in answers.values():
        for target in entry["next"].values():
            assert target in answers, (entry["id"], target)
    return answers


def load_patterns(answers):
    """Patterns such as `<how> {stop|end} {it|tandem}` with the macros of the first section."""
    macros = {}
    for path in (TEXTS / "patterns.txt", TEXTS / "patterns-2.txt"):
        for name, lines in sections(path):
            if name == "macros":
                macros = dict(line.split("=", 1) for line in lines)
            else:
                answers[name]["patterns"] = [re.sub(r"<(\w+)>", lambda m: macros[m[1]][1:-1] if _inside(line, m.start()) else macros[m[1]], line) for line in lines]


def _inside(line, at):
    return line.count("{", 0, at) > line.count("}", 0, at)


def expand(pattern, rng):
    """One question of a pattern."""
    text = re.sub(r"\{([^{}]*)\}", lambda m: rng.choice(m[1].split("|")), pattern)
    return " ".join(text.split()).replace(" ,", ",").replace(" :", ":")


def load_fallbacks():
    return {name: lines[0] for name, lines in sections(TEXTS / "fallbacks.txt")}


def load_off_topic():
    return {name: [q.strip() for q in " ".join(lines).split(" | ")] for name, lines in sections(TEXTS / "off-topic.txt")}


def load_vocabulary():
    return {name: " ".join(lines).split() for name, lines in sections(TEXTS / "vocabulary.txt")}


def load_pages():
    """Pages as lists of paragraphs, the title first."""
    pages = []
    for part in re.split(r"(?m)^# ", (TEXTS / "pages.txt").read_text(encoding="utf-8"))[1:]:
        pages.append([paragraph.strip() for paragraph in part.strip().split("\n\n")])
    return pages


def normalise(text):
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def first_sentence(text):
    return re.split(r"(?<=[.!?])\s(?=[A-Z`])", text, maxsplit=1)[0]


# ---------------------------------------------------------------- questions

FRAMES = {
    "def": [
        "what is {x}", "what's {x}", "what is {x} exactly", "explain {x}", "define {x}", "{x}", "{x} meaning",
        "what does {x} mean", "can you explain {x}", "tell me about {x}", "describe {x}", "what do you mean by {x}",
        "what is meant by {x}", "could you tell me what {x} is", "give me a definition of {x}", "{x} explained",
        "i don't understand {x}", "please explain {x} to me", "what exactly is {x}", "how would you explain {x}",
        "explain {x} in simple words", "i keep hearing about {x}, what is it", "tell me what {x} is",
        "what can you tell me about {x}", "information about {x}", "help me understand {x}", "what are we talking about with {x}",
        "in one sentence, what is {x}", "the docs mention {x}, what is that", "{x}, what is that", "refresh my memory: what is {x}",
        "i have a question about {x}", "what should i know about {x}", "a short explanation of {x}", "what on earth is {x}",
        "describe {x} for a beginner", "explain {x} like i am five", "how do you define {x}", "who can explain {x}",
        "what's the meaning of {x}", "what is the definition of {x}", "let me know what {x} is", "so what is {x} then",
    ],
    "how": [
        "how do i {x}", "how can i {x}", "how to {x}", "how do you {x}", "what is the command to {x}", "{x}", "i want to {x}",
        "show me how to {x}", "i need to {x}", "how does one {x}", "what do i do to {x}", "what must i do to {x}",
        "is there a way to {x}", "is it possible to {x}", "what's the best way to {x}", "steps to {x}", "how should i {x}",
        "can i {x}", "i would like to {x}", "tell me how to {x}", "what is the easiest way to {x}", "how would i {x}",
        "please help me to {x}", "explain how to {x}", "which command lets me {x}", "what do i type to {x}", "i'm trying to {x}",
        "where do i {x}", "what's the way to {x}", "can you show me how to {x}", "how might i {x}", "instructions to {x}",
        "i have to {x}, how", "how could we {x}", "we want to {x}, what now", "guide me to {x}",
    ],
    "err": [
        "what does {x} mean", "what is {x}", "why do i get {x}", "i get {x}", "i got {x}", "{x}", "error {x}", "{x} error",
        "what does the error {x} mean", "my request failed with {x}", "the server says {x}", "what can i do about {x}",
        "how do i fix {x}", "explain {x}", "{x}, what now", "what should i do about {x}", "tandem returns {x}", "help, {x}",
        "the router answered {x}", "what causes {x}", "where does {x} come from", "i see {x} in the log", "why {x}",
        "how do i get rid of {x}", "all my requests fail with {x}", "meaning of {x}", "what is the reason for {x}",
        "the client shows {x}", "what is wrong when i see {x}", "how can i avoid {x}", "what's {x} about", "{x} again and again",
        "what happened when it says {x}", "i keep getting {x}", "the api gives me {x}", "response is {x}", "sometimes i see {x}",
        "tell me what {x} means", "the error {x}", "it ended with {x}", "we are seeing {x}", "got an {x} today, why",
    ],
    "diff": [
        "what is the difference between {a} and {b}", "difference between {a} and {b}", "{a} vs {b}", "{a} versus {b}",
        "{a} or {b}", "compare {a} and {b}", "how does {a} differ from {b}", "what's the difference between {a} and {b}",
        "how is {a} different from {b}", "explain the difference between {a} and {b}", "{a} and {b}, what is the difference",
        "how do {a} and {b} differ", "{a} compared with {b}", "what distinguishes {a} from {b}", "tell {a} and {b} apart",
        "where do {a} and {b} differ", "in what way is {a} unlike {b}", "{a} against {b}", "is {a} not the same as {b}",
    ],
    "why": [
        "why is it that {x}", "explain why {x}", "what is the reason that {x}", "tell me why {x}", "how come {x}",
        "why {x}", "what's the reason {x}", "i don't see why {x}", "for what reason is it that {x}", "can you say why {x}",
        "i wonder why {x}", "give me the reason why {x}", "what is the point, why {x}",
    ],
    "if": [
        "what happens when {x}", "what happens if {x}", "what if {x}", "{x}, what happens", "what does tandem do when {x}",
        "and if {x}", "suppose {x}, what then", "what becomes of the request when {x}", "what should i do when {x}",
        "{x}", "how does tandem react when {x}", "is it a problem when {x}", "what will i see if {x}", "imagine {x}",
        "what goes on when {x}", "say {x}, then what", "help, {x}", "does anything break when {x}", "what to expect when {x}",
    ],
}

LEADS = [
    "hi, ", "hello, ", "hey, ", "hi! ", "hello! ", "please, ", "quick question: ", "question: ", "sorry, ", "ok, ", "ok so ", "so, ",
    "and ", "well, ", "hmm, ", "excuse me, ", "just curious: ", "i am new here. ", "one thing: ", "next question: ", "hey tandem, ",
    "i'm a beginner: ", "i was wondering, ", "tell me: ", "now, ", "also, ", "but ", "for my boss: ", "dear model, ", "honestly, ",
    "in short: ", "briefly: ", "can you tell me: ", "my question is: ", "do you know: ", "i'd like to know: ", "i would like to know ",
    "can you tell me ", "could you tell me ", "please tell me ", "do you know ", "i want to know ", "just tell me ", "explain to me ",
    "i'm wondering ", "anyone know ", "sorry to bother you, ", "good morning, ", "forgive the question: ", "maybe a silly question, ",
    "a colleague asks: ", "for a talk i need to know: ", "remind me, ", "once again: ", "first of all, ", "then ", "yes but ", "um ",
]
TAILS = [
    " please", " pls", ", please", " thanks", ", thanks", " thank you", " exactly", " again", " in short", " briefly", " in tandem",
    " here", " with tandem", " in this system", " then", " now", " actually", " really", ", any idea", ", do you know", ", can you help",
    " i forgot", ", i don't get it", " for a beginner", " in simple words", " in detail", ", i'm new to this", " at all", " in general",
    " in practice", ", tell me", ", in one sentence", ", quickly", " by the way", ", i wonder", " in your words", ", asking for a friend",
]

SYNONYMS = [
    ["what is", "what's", "whats", "what exactly is", "wat is", "what might be"],
    ["what does", "what would", "wat does", "what did"],
    ["how do i", "how can i", "how should i", "how would i", "how could i", "how do we", "how to", "how does one", "how may i"],
    ["why", "how come", "for what reason", "wherefore", "why exactly"],
    ["can i", "could i", "may i", "am i able to", "is it possible to", "can we"],
    ["does", "will", "would", "do"], ["show", "display", "print"], ["see", "view", "find", "look at", "check"],
    ["start", "launch", "run", "begin", "boot", "fire up", "bring up", "spin up"],
    ["stop", "end", "quit", "kill", "halt", "shut down", "terminate", "exit"],
    ["difference", "distinction", "diff"], ["machine", "computer", "box", "host", "server", "laptop", "pc"],
    ["request", "call", "query", "req"], ["happens", "occurs", "goes on", "will happen"], ["important", "vital", "essential"],
    ["big", "large", "huge", "great"], ["small", "tiny", "little", "mini"], ["fast", "quick", "rapid", "speedy"],
    ["slow", "sluggish", "laggy"], ["error", "failure", "problem", "fault", "issue", "message"],
    ["mean", "stand for", "signify", "tell me", "say", "indicate"], ["explain", "describe", "clarify", "outline", "explain to me"],
    ["tell me", "say", "let me know", "inform me"], ["use", "employ", "work with", "utilise", "apply"],
    ["need", "require", "have to have", "must have"], ["get", "receive", "obtain", "see", "have", "run into"],
    ["send", "post", "submit", "issue"], ["make", "create", "produce", "build"], ["choose", "pick", "select", "decide on"],
    ["several", "multiple", "many", "more than one", "a few"], ["separate", "split", "divide", "part", "decouple", "pull apart"],
    ["separated", "split", "divided", "decoupled", "kept apart"], ["separating", "splitting", "decoupling", "dividing"],
    ["answer", "reply", "response", "output"], ["question", "prompt"], ["client", "user", "caller", "customer"],
    ["disconnects", "leaves", "hangs up", "goes away", "drops off", "closes the connection"],
    ["crashes", "dies", "fails", "is killed", "goes down", "breaks", "crashed", "died"], ["stuck", "frozen", "hung", "wedged", "blocked"],
    ["notice", "detect", "find out", "spot", "discover", "recognise", "realise"], ["supported", "possible", "available", "allowed"],
    ["which", "what", "whch"], ["good", "useful", "fine", "helpful", "worthwhile"], ["bad", "wrong", "poor", "a bad idea"],
    ["install", "set up", "setup", "deploy"], ["change", "set", "modify", "adjust", "alter"],
    ["move", "travel", "go", "get", "ship", "transfer", "pass"], ["moved", "transferred", "shipped", "passed", "sent", "pushed", "carried"],
    ["instances", "workers", "servers", "nodes"], ["instance", "worker", "server", "node", "box"], ["list", "name", "enumerate", "give me"],
    ["example", "sample"], ["command", "cmd", "shell command"], ["memory", "ram", "space"], ["long", "lengthy"], ["measure", "compute", "determine"],
    ["purpose", "point", "role", "job", "aim", "use"], ["without", "w/o", "with no"], ["for", "4"], ["you", "u"], ["your", "ur"], ["are", "r"],
    ["please", "pls", "plz"], ["because", "since"], ["before", "prior to", "ahead of"], ["after", "once", "following"], ["wait", "stay", "queue"],
    ["lost", "dropped", "gone"], ["lose", "drop", "miss"], ["remove", "take out", "take away", "get rid of"], ["add", "attach", "put in"],
    ["work", "function", "operate"], ["works", "functions", "operates"], ["again", "once more", "another time"], ["find", "locate", "get"],
    ["write", "generate", "produce"], ["reads", "processes", "handles"], ["run on", "live on", "sit on"], ["set", "define", "put"],
    ["try", "test", "try out", "give it a go"], ["part", "piece", "half"], ["phase", "stage", "step", "leg", "part"], ["first", "initial", "1st"],
    ["time", "duration", "period"], ["between", "in between", "betw"], ["better", "preferable", "superior"], ["always", "every time"],
    ["gpu", "graphics card", "gpus", "nvidia gpu"], ["model", "llm", "language model"], ["api", "rest api", "http api"], ["key", "secret"],
    ["program", "process", "app"], ["the", "this", "that", "a"], ["is", "s", "was"], ["doing", "up to"], ["guarantee", "promise", "assure"],
    ["keep", "hold", "retain"], ["kept", "held", "retained", "stored"], ["connect", "hook up", "link"], ["address", "url"], ["look", "peek", "glance"],
    ["calculate", "compute", "work out", "figure out"], ["reserve", "book", "claim", "take"], ["reserved", "booked", "claimed", "taken", "held"],
    ["many", "lots of", "a lot of"], ["too many", "an excess of", "loads of"], ["automatically", "by itself", "on its own"],
    ["old", "used", "previous"], ["own", "custom", "personal"], ["real", "actual", "proper", "genuine"], ["engine", "vllm engine", "inference engine"],
    ["slot", "place", "space"], ["retry", "try again", "attempt again", "repeat"], ["retried", "tried again", "repeated"], ["router", "gateway", "front end"],
]
SYNONYM_OF = {}
for group in SYNONYMS:
    for phrase in group:
        SYNONYM_OF.setdefault(phrase, [])
        SYNONYM_OF[phrase] += [other for other in group if other != phrase]
LONGEST_SYNONYM = max(len(phrase.split()) for phrase in SYNONYM_OF)
FILLER = set("a an the of to in on at is are was do does did i you me my it its that this please so and or but for with by be can could "
             "would should will just exactly actually really then there here have has get".split())
KEYS = {}
for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm"):
    for i, key in enumerate(row):
        KEYS[key] = (row[i - 1] if i else row[i + 1]) + (row[i + 1] if i + 1 < len(row) else row[i - 1])


def framed(entry):
    """Every question that the frames give for one answer."""
    out = []
    for kind in ("def", "how", "err", "why", "if"):
        for value in entry.get(kind, []):
            out += [frame.format(x=value) for frame in FRAMES[kind]]
    for a, b in entry.get("diff", []):
        out += [frame.format(a=a, b=b) for frame in FRAMES["diff"]] + [frame.format(a=b, b=a) for frame in FRAMES["diff"]]
    return out


ASKING = re.compile(r"^(what|which|who|whose|why|how|when|where|is|are|can|could|does|do|did|may|must|should|will|has|isn't|at which|on which)\b")


def present(text, rng):
    """The question as somebody may type it: capitals, question mark."""
    asks = bool(ASKING.match(text))
    way = rng.random()
    if way < 0.45:
        return text[0].upper() + text[1:] + ("?" if asks else rng.choice(["", "."]))
    if way < 0.65:
        return text + ("?" if asks else "")
    if way < 0.92:
        return text
    if way < 0.95:
        return text.upper() + ("?" if asks else "")
    return text[0].upper() + text[1:] + rng.choice(["??", "!", " ?", "...", "?!", "."])


def canonical(entry, frames):
    """The trained wordings of one answer: all written by hand, then frames up to the limit, each as it is typed."""
    rng = random.Random("canonical " + entry["id"])
    more = [text for text in dict.fromkeys(frames) if text not in entry["hand"]]
    rng.shuffle(more)
    chosen = list(dict.fromkeys(entry["hand"])) + more
    if len(entry["hand"]) < WORDINGS_PER_ANSWER:
        chosen = chosen[:WORDINGS_PER_ANSWER]
    return [present(text, rng) if rng.random() < 0.7 else text for text in chosen]


def typo(word, rng):
    if len(word) < 3 or not word.isalpha():
        return word
    i = rng.randrange(len(word) - 1)
    way = rng.random()
    if way < 0.35:
        return word[:i] + word[i + 1] + word[i] + word[i + 2:]
    if way < 0.65:
        return word[:i] + word[i + 1:] if i else word[:-1]
    if way < 0.8:
        return word[:i] + word[i] + word[i:]
    key = word[i].lower()
    return word[:i] + (rng.choice(KEYS[key]) if key in KEYS else "") + word[i + 1:]


def swap_synonyms(words, rng, rate):
    out, i = [], 0
    while i < len(words):
        for length in range(min(LONGEST_SYNONYM, len(words) - i), 0, -1):
            phrase = " ".join(words[i:i + length]).lower()
            if phrase in SYNONYM_OF and rng.random() < rate:
                out += rng.choice(SYNONYM_OF[phrase]).split()
                i += length
                break
        else:
            out.append(words[i])
            i += 1
    return out


def blur(text, rng):
    """Another way to type the same question: synonyms, words lost or swapped, misspellings, a lead-in, a tail."""
    words = text.split()
    if rng.random() < 0.5:
        words = swap_synonyms(words, rng, 0.35)
    if rng.random() < 0.35:
        rate = rng.choice([0.2, 0.4, 0.9])
        kept = [w for w in words if not (w.lower() in FILLER and rng.random() < rate)]
        words = kept or words
    if len(words) > 4 and rng.random() < 0.1:
        words.pop(rng.randrange(len(words)))
    if len(words) > 2 and rng.random() < 0.1:
        i = rng.randrange(len(words) - 1)
        words[i], words[i + 1] = words[i + 1], words[i]
    if len(words) > 3 and rng.random() < 0.04:
        rng.shuffle(words)
    if len(words) > 3 and rng.random() < 0.08:
        i = rng.randrange(1, len(words))
        words = words[i:] + words[:i]
    if rng.random() < 0.25:
        words = [typo(w, rng) if rng.random() < 0.25 else w for w in words]
    if rng.random() < 0.08:
        words.insert(rng.randrange(len(words) + 1), rng.choice(["exactly", "actually", "just", "maybe", "really", "please", "now", "the", "ever", "here"]))
    text = " ".join(words)
    if rng.random() < 0.28:
        text = rng.choice(LEADS) + text
    if rng.random() < 0.2:
        text = text.rstrip("?.! ") + rng.choice(TAILS)
    return text


# ---------------------------------------------------------------- off-topic questions

OFF_FRAMES = [
    "what is {n}", "what is a {n}", "what's a {n}", "how does a {n} work", "how do i {v}", "how do i {v} a {n}", "how can i {v} the {n}",
    "who invented the {n}", "what colour is a {n}", "how much does a {n} cost", "where can i buy a {n}", "tell me about {p}", "who was {p}",
    "when was {p} born", "what did {p} do", "what is the capital of {c}", "where is {c}", "how many people live in {c}", "how far is {c}",
    "what should i see in {c}", "what do people eat in {c}", "is {c} expensive", "what is the best {n} in {c}", "why is a {n} {a}",
    "why are {n}s {a}", "what is the difference between a {n} and a {m}", "is a {n} better than a {m}", "{n} or {m}", "{n} vs {m}", "{n}",
    "{a} {n}", "do you like {n}", "can a {n} {v}", "how old is {c}", "how big is a {n}", "how heavy is a {n}", "what does {n} mean",
    "explain {n}", "define {n}", "describe a {n}", "give me facts about {n}", "history of the {n}", "how is {n} made", "which {n} is the best",
    "what is the {a} {n}", "how long does a {n} live", "what do {n}s eat", "how do i learn to {v}", "what do i need to {v}", "is it hard to {v}",
    "can you teach me to {v}", "who is the best at {n}", "when did {p} visit {c}", "what language is spoken in {c}", "what is {c} famous for",
    "how many {n}s are there in {c}", "i love {n}", "i bought a {a} {n}", "my {n} is broken", "my {n} hurts", "how do i repair my {n}",
    "why doesn't my {n} work", "what is the price of a {a} {n}", "is {n} healthy", "should i {v} my {n}", "what is the oldest {n}",
    "how do i say {n} in {c}", "what happens when a {n} meets a {m}", "what if the {n} is {a}", "how many {n}s fit into a {m}",
    "which {n} should i buy", "what does a {n} look like", "explain how a {n} works", "where do {n}s come from", "what is {p} known for",
    "is {p} still alive", "what is the meaning of {n}", "how do i choose a {n}", "what kind of {n} is {a}", "how do i start a {n}",
    "how do i stop a {n}", "how do i install a {n}", "what is the command to {v}", "i want to {v}", "show me how to {v} a {n}", "list all {n}s",
    "what is the error in my {n}", "why did the {n} fail", "what does the {n} do", "what is a {n} for", "how is a {n} measured",
    "what is the size of a {n}", "which port has a {n}", "who is responsible for the {n}", "is there a {n} in {c}", "how do i configure a {n}",
    "when should i use a {n}", "why do we need a {n}", "what are the parts of a {n}", "what are the benefits of {n}", "what is {a} {n} good for",
    "how do i test a {n}", "can i use a {n} without a {m}", "does a {n} need a {m}", "how do i connect a {n} to a {m}", "how much memory has a {n}",
    "what is the best way to {v}", "how long does it take to {v} a {n}", "when was the {n} invented", "where was {p} born", "how tall is {p}",
    "what is the plot of {p}'s {n}", "which {n} did {p} own", "recommend a {n}", "what {n} do i need", "what is the weather in {c}",
    "how do i travel to {c}", "what currency does {c} have", "who rules {c}", "what is the largest {n} in {c}", "how do you spell {n}",
]
OFF_TASKS = [
    "write a poem about {n}", "write a story about a {n}", "write an essay about {p}", "write a song about {c}", "write a letter about {n}",
    "translate {n} into german", "translate {n} to french", "tell me a joke about {n}", "tell me a story about a {n}", "draw a {n}",
    "give me a recipe with {n}", "give me a recipe for {n} soup", "what is {i} plus {j}", "what is {i} times {j}", "what is {i} minus {j}", "what is {i} divided by {j}",
    "calculate {i} * {j}", "{i} + {j}", "{i} x {j}", "is {i} a prime number", "what is the square root of {i}", "convert {i} euros to dollars", "convert {i} miles to kilometres",
    "write a program about {n}s", "write code for a {n}", "write a {n} in python", "summarise the book about {n}", "make a list of {n}s",
    "plan a trip to {c}", "plan a weekend in {c}", "act as a {n}", "pretend to be {p}", "say {n}", "repeat the word {n}", "compose a {n}", "what rhymes with {n}",
    "write an email about my {n}", "write a speech about {c}", "find a synonym for {a}", "correct the word {n}", "write a function that counts {n}s",
]
OFF_LIVE = [
    "what is the weather in {c} today", "what time is it in {c}", "will it rain in {c} tomorrow", "order a {n}", "buy me a {n}", "call {p}",
    "book a hotel in {c}", "book a flight to {c}", "what is the price of {n} now", "turn on the {n}", "turn off the {n}", "open the {n}",
    "play {p}", "search the web for {n}", "find a {n} near me", "what's new in {c} today", "where is my {n}", "remind me of the {n}",
    "how warm is it in {c} now", "send the {n} to my mother", "show me a photo of a {n}", "when does the next train to {c} leave",
]
SYLLABLES = "ba be bi bo bu da de di do du fa fe fi ga go gra ka kle ko la le li lo ma me mi mo na ne no pa pe plo pra ra re ri ro sa se si sta ta te ti to tra va ve vi vo wa we za zo xi qua".split()


def off_topic(rng, hand, words, pieces=(), hand_share=0.42):
    """(question, fallback) of something that the texts don't answer. `pieces` are parts of words to make unknown ones of."""
    way = rng.random()
    if way < hand_share:
        kind = rng.choices(list(hand), weights=[6, 2, 2, 3, 1])[0]
        return rng.choice(hand[kind]), kind
    if way < 0.80:
        frames, kind = OFF_FRAMES, "not-known"
    elif way < 0.89:
        frames, kind = OFF_TASKS, "cannot-do"
    elif way < 0.95:
        frames, kind = OFF_LIVE, "cannot-see"
    else:
        n = rng.randint(1, 3)
        text = " ".join("".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 7))) for _ in range(n))
        return text, "unclear"

    def noun():
        if pieces and rng.random() < 0.5:
            word = "".join(rng.choice(pieces) for _ in range(rng.randint(2, 4)))
            return word if rng.random() < 0.6 else word.capitalize()
        if rng.random() < 0.15:
            return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))
        return rng.choice(words["thing"])

    text = rng.choice(frames).format(
        n=noun(), m=noun(), p=rng.choice(words["person"]) if not pieces or rng.random() < 0.5 else noun().capitalize(),
        c=rng.choice(words["place"]) if not pieces or rng.random() < 0.5 else noun().capitalize(), v=rng.choice(words["skill"]) if not pieces or rng.random() < 0.6 else noun(), a=rng.choice(words["adjective"]), i=rng.randint(1, 99), j=rng.randint(1, 99))
    return re.sub(r"\ba (?=[aeiou])", "an ", text), kind


# ---------------------------------------------------------------- chats of several turns

FOLLOW_UPS = {
    "why": ["why?", "why", "Why?", "why is that?", "Why is that?", "how come?", "and why?", "but why?", "why so?", "what is the reason?", "for what reason?",
            "why is it so?", "and why is that", "ok, but why?", "why would that be?", "Can you say why?", "what's the reason for that?"],
    "how": ["how?", "how", "How?", "how do i do that?", "How do I do that?", "how can i do that?", "show me how", "and how?", "what is the command?", "how do i try that?",
            "how do i see that?", "ok, how do i do it?", "How does one do that?", "tell me how", "what do i type?", "how would i do that", "so how do i do that?"],
    "more": ["tell me more", "more", "Tell me more.", "go on", "what else?", "more please", "anything else?", "continue", "more about that", "elaborate",
             "Can you tell me more?", "more details", "what else should i know?", "and what else?", "say more", "please go on", "keep going"],
    "again": ["say that again", "repeat that", "again please", "once more", "Repeat your answer.", "say it again", "can you repeat that?", "again", "pardon?",
              "Could you repeat that, please?", "what did you say?", "please repeat", "once again"],
}
SYSTEMS = ["You are a helpful assistant.", "You are tandem-tiny.", "Answer briefly.", "You are a helpful assistant. Answer in English.",
           "You answer questions about Tandem.", "Be concise and polite.", "You are a support agent.", "Always answer truthfully.", "Be helpful."]


def follow_up(name, relation, answers):
    """What answers `relation` after the answer `name`; None is 'not covered'."""
    if relation == "again":
        return name
    if name not in answers:
        return {"why": "why-tiny"}.get(relation, "can")
    return answers[name]["next"].get(relation)


# ---------------------------------------------------------------- long prompts

NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split()


def joined(rng, parts, question, head):
    gap = rng.choice(["\n\n", "\n"])
    return (head + gap if head else "") + gap.join(parts) + gap + question


def long_paragraphs(rng, answers, pages, count):
    pool = [(name, entry["text"]) for name, entry in answers.items()] + [(None, p) for page in pages for p in page[1:]]
    chosen = rng.sample(pool, count)
    mark = rng.choice(["Paragraph {}: ", "[{}] ", "{}. ", "Paragraph {}. "])
    parts = [mark.format(i + 1) + text for i, (_, text) in enumerate(chosen)]
    i = rng.randrange(count)
    name, text = chosen[i]
    number = str(i + 1) if rng.random() < 0.8 else NUMBER_WORDS[i + 1]
    if name is not None and rng.random() < 0.6:
        asked = rng.choice(answers[name]["hand"] + framed(answers[name]))
        asked = asked[0].lower() + asked[1:] if rng.random() < 0.5 else asked
        question = rng.choice(["According to paragraph {}, {}?", "In paragraph {}: {}?", "Read paragraph {} and answer: {}?", "Use paragraph {}. {}?",
                               "as paragraph {} has it, {}?"]).format(number, asked)
        kind = "about"
    else:
        question = rng.choice(["What is the first sentence of paragraph {}?", "Repeat the first sentence of paragraph {}.", "How does paragraph {} begin?",
                               "What does paragraph {} say first?", "Quote the first sentence of paragraph {}.", "first sentence of paragraph {}"]).format(number)
        kind = "first-sentence"
    head = rng.choice(["", "", "Here are some paragraphs.", "Please read the following.", "Read these paragraphs, then answer the question."])
    return joined(rng, parts, question, head), first_sentence(text), kind


RUN_FIELDS = {"TTFT": "ms", "ITL": "ms", "TPOT": "ms", "goodput": "req/s"}


def long_runs(rng, count):
    numbers = sorted(rng.sample(range(1, 61), count)) if rng.random() < 0.7 else rng.sample(range(1, 61), count)
    runs = {}
    for number in numbers:
        runs[number] = {"TTFT": rng.randint(11, 999), "ITL": rng.randint(3, 60), "TPOT": rng.randint(3, 60), "goodput": rng.randint(1, 99)}
    parts = [f"Run {n}: {rng.randint(1, 9)} prefill, {rng.randint(1, 9)} decode, TTFT {r['TTFT']} ms, ITL {r['ITL']} ms, TPOT {r['TPOT']} ms, goodput {r['goodput']} req/s."
             for n, r in runs.items()]
    number, field = rng.choice(numbers), rng.choice(list(RUN_FIELDS))
    value = f"{runs[number][field]} {RUN_FIELDS[field]}"
    question = rng.choice(["What was the {f} in run {n}?", "What was the {f} of run {n}?", "Which {f} did run {n} have?", "{f} of run {n}?", "In run {n}, what was the {f}?",
                           "How high was the {f} in run {n}?"]).format(f=field, n=number)
    head = rng.choice(["", "Results of the benchmark:", "These runs were measured."])
    return joined(rng, parts, question, head), f"The {field} in run {number} was {value}.", "runs"


STATES = ["serving", "starting", "draining", "stopped"]


def long_instances(rng, count):
    names = [f"prefill-{i}" for i in range(1, 31)] + [f"decode-{i}" for i in range(1, 31)]
    chosen = rng.sample(names, count)
    facts = {name: (rng.choice(STATES), rng.randint(0, 40), rng.randint(0, 40)) for name in chosen}
    parts = [f"Instance {name} is {s}, runs {legs} legs and has {free} free slots." for name, (s, legs, free) in facts.items()]
    name = rng.choice(chosen)
    state, legs, free = facts[name]
    question, answer = rng.choice([
        (f"What is the state of {name}?", f"{name} is {state}."),
        (f"How many free slots does {name} have?", f"{name} has {free} free slots."),
        (f"How many legs run on {name}?", f"{name} runs {legs} legs."),
        (f"In which state is {name}?", f"{name} is {state}."),
        (f"How many legs does {name} run?", f"{name} runs {legs} legs."),
        (f"free slots of {name}?", f"{name} has {free} free slots."),
    ])
    head = rng.choice(["", "The state of the pool:", "This is what the router shows."])
    return joined(rng, parts, question, head), answer, "instances"


def long_prompt(rng, answers, pages, words_limit):
    """(prompt, answer, kind) of at most about `words_limit` words."""
    way = rng.random()
    if way < 0.5:
        return long_paragraphs(rng, answers, pages, rng.randint(2, max(2, min(12, words_limit // 52))))
    if way < 0.78:
        return long_runs(rng, rng.randint(2, max(2, min(40, words_limit // 19))))
    return long_instances(rng, rng.randint(2, max(2, min(50, words_limit // 13))))


# ---------------------------------------------------------------- all together


def frozen_questions():
    held_out = json.loads((HERE / "held-out.json").read_text(encoding="utf-8"))
    foreign = json.loads((HERE / "foreign.json").read_text(encoding="utf-8"))
    for line in (TEXTS / "frozen.sha256").read_text().split("\n"):
        if line.strip():
            digest, name = line.split()
            assert hashlib.sha256((HERE / name).read_bytes()).hexdigest() == digest, f"{name} is not the frozen one"
    return held_out, foreign


class Corpus:
    """All texts, checked: no question has two answers, and no frozen question is among the trained ones."""

    def __init__(self, leave_out=None):
        self.answers = load_answers()
        self.fallbacks = load_fallbacks()
        self.hand_off_topic = load_off_topic()
        self.words = load_vocabulary()
        self.pieces = []
        self.pages = load_pages()
        held_out, foreign = frozen_questions()
        self.frozen = {normalise(q["text"]) for q in held_out} | {normalise(q) for q in foreign}
        self.left_out = []
        if leave_out is not None:
            for name, entry in self.answers.items():
                out = [q for i, q in enumerate(entry["hand"]) if i % 10 == leave_out]
                self.left_out += [(q, name) for q in out]
                entry["hand"] = [q for q in entry["hand"] if q not in out]
            for kind, questions in self.hand_off_topic.items():
                out = [q for i, q in enumerate(questions) if i % 10 == leave_out]
                self.left_out += [(q, kind) for q in out]
                self.hand_off_topic[kind] = [q for q in questions if q not in out]
        self.text = {name: entry["text"] for name, entry in self.answers.items()} | self.fallbacks
        away = {normalise(question) for question, _ in self.left_out}
        self.frozen |= away
        self.framed = {name: [q for q in framed(entry) if normalise(q) not in away] for name, entry in self.answers.items()}
        self.canonical = {name: canonical(entry, self.framed[name]) for name, entry in self.answers.items()}
        self.names = list(self.answers)
        self.known = {}
        for name, entry in self.answers.items():
            for question in entry["hand"] + self.framed[name]:
                self._claim(question, name)
        for kind, questions in self.hand_off_topic.items():
            for question in questions:
                if normalise(question):
                    self._claim(question, kind)
        for questions in self.canonical.values():
            for question in questions:
                assert normalise(question) not in self.frozen, f"frozen question among the trained: {question}"
        for question, _ in self.wordings():
            assert normalise(question) not in self.frozen or not normalise(question), question

    def _claim(self, question, name):
        key = normalise(question)
        assert self.known.setdefault(key, name) == name, f"{question!r}: {self.known[key]} and {name}"
        assert key not in self.frozen, f"frozen question among the trained: {question!r} ({name})"

    def wordings(self):
        """(question, id) of every trained wording, off-topic ones written by hand included."""
        out = [(question, name) for name, questions in self.canonical.items() for question in questions]
        return out + [(question, kind) for kind, questions in self.hand_off_topic.items() for question in dict.fromkeys(questions)]

    def question(self, rng):
        """One (question, id) to train on. The second phase (`pieces` set) sees more exact wordings and more unknown words."""
        late = bool(self.pieces)
        for _ in range(20):
            if rng.random() < (0.64 if late else 0.74):
                name = rng.choice(self.names)
                way = rng.random()
                if way < (0.4 if late else 0.22):
                    return rng.choice(self.canonical[name]), name
                frames = self.framed[name]
                if way < 0.72:
                    text = expand(rng.choice(self.answers[name]["patterns"]), rng)
                elif frames and way < 0.84:
                    text = rng.choice(frames)
                else:
                    text = rng.choice(self.answers[name]["hand"])
            else:
                text, name = off_topic(rng, self.hand_off_topic, self.words, self.pieces, 0.3 if late else 0.42)
                if rng.random() < 0.3:
                    key = normalise(text)
                    if key in self.frozen or self.known.get(key, name) != name:
                        continue
                    return text, name
            blurred = blur(text, rng) if rng.random() < 0.65 else text
            if not blurred:
                continue
            blurred = present(blurred, rng)
            key = normalise(blurred)
            if key in self.frozen or self.known.get(key, name) != name:
                continue
            return blurred, name
        raise RuntimeError("no question found")

    def chat(self, rng):
        """Messages of one to three turns with the answer of each."""
        turns = [self.question(rng)]
        for _ in range(1 if rng.random() < 0.8 else 2):
            name = turns[-1][1]
            way = rng.random()
            if way < 0.7:
                relation = rng.choices(list(FOLLOW_UPS), weights=[3, 3, 3, 1])[0]
                target = follow_up(name, relation, self.answers)
                phrase = rng.choice(FOLLOW_UPS[relation])
                if rng.random() < 0.2:
                    phrase = phrase.lower().rstrip("?.") + rng.choice(["", "?", "??", " please", "!"])
                turns.append((phrase, target or "not-covered"))
            elif way < 0.76:
                turns.append((rng.choice(self.canonical["thanks"]), "thanks"))
            else:
                turns.append(self.question(rng))
        return [(question, self.text[name]) for question, name in turns]

    def page(self, rng):
        """A page of plain text from some sentence on, and what it continues with."""
        page = rng.choice(self.pages)
        if rng.random() < 0.2:
            return "# " + page[0] + "\n\n" + "\n\n".join(page[1:])
        start = rng.randrange(1, len(page))
        paragraphs = page[start:]
        if rng.random() < 0.5:
            sentences = re.split(r"(?<=[.!?])\s(?=[A-Z])", paragraphs[0])
            paragraphs[0] = " ".join(sentences[rng.randrange(len(sentences)):])
        return "\n\n".join(paragraphs)


def two_turn_cases(corpus):
    """Every answer's first wording with each plain follow-up it has."""
    cases = []
    for name, entry in corpus.answers.items():
        for relation in ("why", "how", "more"):
            target = entry["next"].get(relation)
            if target:
                cases.append({"id": f"{name}/{relation}", "turns": [[corpus.canonical[name][0], corpus.text[name]], [FOLLOW_UPS[relation][0], corpus.text[target]]]})
    return cases


def long_cases(corpus, count=150):
    rng = random.Random("long prompts of the test set")
    cases = []
    for i in range(count):
        prompt, answer, kind = long_prompt(rng, corpus.answers, corpus.pages, rng.choice([150, 250, 400, 520, 600]))
        cases.append({"id": f"long-{i + 1}", "kind": kind, "prompt": prompt, "answer": answer})
    return cases


if __name__ == "__main__":
    corpus = Corpus()
    print(len(corpus.answers), "answers,", sum(len(t) for t in corpus.text.values()), "characters,", len(corpus.wordings()), "wordings; fewest per answer",
          min((len(v), k) for k, v in corpus.canonical.items()), "hand off-topic", sum(len(v) for v in corpus.hand_off_topic.values()))
