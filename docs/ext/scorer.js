// Ranks the pages of somebody who has a problem above those that explain how things are made. The
// other numbers are Sphinx's own.
var Scorer = {
  score: ([page, title, anchor, description, score]) =>
    score + (page === "wrong" ? 12 : /^(first-steps|howto\/)/.test(page) ? 10 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
