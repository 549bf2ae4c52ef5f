// A counter in memory, and two workers, each with a heap of objects that it replaces without pause and that carry sums of what they hold.
// `/` counts; `/check` says how far it counted, how many objects were replaced, and how many sums are wrong.
const {Worker, isMainThread, parentPort} = require("worker_threads");

const OBJECTS = 4000;

function fresh() {
  const parts = Array.from({length: 40}, () => ({number: Math.floor(Math.random() * 1e6), text: String(Math.random())}));
  return {parts, sum: sum(parts)};
}

function sum(parts) {
  return parts.reduce((all, part) => (all * 31 + part.number + part.text.length) % 1000000007, 7);
}

if (isMainThread) {
  const workers = [0, 1].map(() => new Worker(__filename));
  const ask = (worker) => new Promise((told) => { worker.once("message", told); worker.postMessage("check"); });
  let count = 0;
  let objects = fresh();
  let wrong = 0;
  let checks = Promise.resolve();
  require("http").createServer((request, response) => {
    if (request.url !== "/check") {
      count += 1;
      if (sum(objects.parts) !== objects.sum) wrong += 1;
      objects = fresh();
      response.end(JSON.stringify({count}));
      return;
    }
    // One after the other: a worker's answer is the next message.
    checks = checks.then(async () => {
      const told = await Promise.all(workers.map(ask));
      const all = (key) => told.reduce((n, one) => n + one[key], 0);
      response.end(JSON.stringify({count, work: all("work"), wrong: wrong + all("wrong")}));
    });
  }).listen(8080);
} else {
  const heap = new Map();
  let work = 0;
  let wrong = 0;
  const check = (object) => { if (sum(object.parts) !== object.sum) wrong += 1; };
  parentPort.on("message", () => { heap.forEach(check); parentPort.postMessage({work, wrong}); });
  const step = () => {
    for (let n = 0; n < 40; n += 1) {
      const place = Math.floor(Math.random() * OBJECTS);
      if (heap.has(place)) check(heap.get(place));
      heap.set(place, fresh());
      work += 1;
    }
    setTimeout(step, 4);
  };
  step();
}
