<?php
// A counter in memory that all workers share, and in a file, which must always agree; and objects in that memory with sums of what
// they hold. `/` counts and replaces one object; `/check` says how far it counted and what is wrong.
const OBJECTS = 200;

$file = fopen('/srv/data/counted', 'c+');
flock($file, LOCK_EX);
if ($_SERVER['REQUEST_URI'] === '/check') {
    $wrong = 0;
    for ($place = 0; $place < OBJECTS; $place++) {
        $object = apcu_fetch("object-$place");
        $wrong += $object !== false && md5(serialize($object['parts'])) !== $object['sum'];
    }
    $count = (int) apcu_fetch('count');
    // The file has every number once, in order.
    $wrong += array_map(intval(...), file('/srv/data/counted')) !== ($count ? range(1, $count) : []);
    exit(json_encode(['count' => $count, 'work' => (int) apcu_fetch('work'), 'wrong' => $wrong]));
}
$count = apcu_inc('count');
fseek($file, 0, SEEK_END);
fwrite($file, "$count\n");
fflush($file);
flock($file, LOCK_UN);

// Cycles, so that there is something to collect.
$parts = [];
for ($n = 0; $n < 500; $n++) {
    $part = (object) ['number' => mt_rand()];
    $part->self = $part;
    $parts[] = $part->number;
}
$collected = gc_collect_cycles();
apcu_store('object-' . mt_rand(0, OBJECTS - 1), ['parts' => $parts, 'sum' => md5(serialize($parts))]);
apcu_inc('work', $collected);
echo json_encode(['count' => $count]);
