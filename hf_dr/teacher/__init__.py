"""Who answers: classifiers, their ensemble, and the short form of an answer that is stored.

`ensemble` averages the members that `members` loads; `topk` and `signals` say what is kept of an answer."""
