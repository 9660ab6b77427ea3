// The vocabulary of the sim, by position in a sentence. Every word is one token with its
// leading space; prompts made of them cost about one token a word, as with a real tokenizer.

const words = (list: string): readonly string[] =>
  list
    .trim()
    .split(/\s+/)
    .map((word) => ` ${word}`);

/** The beginning of every answer, so that it isn't mistaken for a model's. */
export const OPENING = "(simulated)";

/** In the order of their tokens: another order gives other texts. */
export const WORDS = {
  openers: words("The A This That Every Each One Another Some No My Your Our Their"),
  nouns: words(`
  sea story world river mountain city garden window door house road bridge river forest island ship captain
  letter book page word line question answer idea reason number table paper picture color sound song music
  morning evening night winter summer spring autumn day week year hour minute moment time clock
  child friend teacher doctor farmer sailor baker painter writer reader worker neighbor family people
  engine machine wheel signal message network server client router model token cache block queue request
  market street corner kitchen bread water coffee apple tree leaf flower stone sand wind rain snow cloud
  sun moon star light shadow fire smoke field horse bird cat dog fish boat train station ticket map
  plan rule game team player score price cost result test error change problem system process method`),
  verbs: words(`
  keeps holds finds takes gives makes brings sends reads writes carries follows leaves meets knows
  remembers forgets opens closes moves turns builds breaks counts measures watches hears answers asks
  waits works sleeps walks runs returns begins ends grows falls rises shines changes learns teaches`),
  adjectives: words(`
  small large quiet loud old new early late warm cold bright dark simple strange slow quick long short
  deep high open empty full heavy light clear blue green red white black golden silver wooden gentle
  careful honest patient distant familiar ordinary certain different important possible`),
  adverbs: words(`
  slowly quickly quietly again always never often sometimes today tomorrow together alone later soon
  here there almost nearly carefully gladly perhaps`),
  links: words("and but while because when before after until so although"),
  prepositions: words("in on at by with under over near behind between through across along from to for of about"),
  articles: words("the a this that its his her every"),
  /** Common in prompts; the sim itself says few of them. */
  others: words(`
  is are was were be been being am do does did have has had will would can could should may might must
  not no yes or if then than as it he she they we you I me him them us who what which where why how
  You tell say said says go goes went come came get got make made see saw look want need use used using help
  please thank thanks write explain describe list give show name create add find first second third last
  next other many much more most few less least all any both each some such only own same very too also
  just even still now up down out off into onto around these those there here Hello hello two three four
  five six seven eight nine ten hundred thousand because about without within something anything nothing
  everything someone everyone user assistant system code text data file function value type`),
};
