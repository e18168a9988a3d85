// Starts the three parts of the page; each asks for what it shows, at the same time.

import * as feed from "./feed.js";
import * as indexes from "./indexes.js";
import * as search from "./search.js";

indexes.start();
search.start();
feed.start((batch) => {
  indexes.noteBatch(batch);
  search.noteBatch(batch);
});
