import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.atomic.AtomicLong;

/** A counter in memory, and threads, each with a heap of objects that it replaces without pause and that carry sums of what they hold. */
public final class Server {
    private static final int OBJECTS = 4000;
    private static final AtomicLong count = new AtomicLong();

    private record Thing(List<String> parts, int sum) {
        static Thing fresh() {
            List<String> parts = new ArrayList<>();
            for (int n = 0; n < 40; n++) {
                parts.add("part " + ThreadLocalRandom.current().nextLong());
            }
            return new Thing(parts, sum(parts));
        }

        // Not the strings' own hash, which is remembered.
        static int sum(List<String> parts) {
            int sum = 7;
            for (String part : parts) {
                for (int at = 0; at < part.length(); at++) {
                    sum = 31 * sum + part.charAt(at);
                }
            }
            return sum;
        }

        boolean wrong() {
            return sum(parts) != sum;
        }
    }

    private static final class Churn extends Thread {
        private final Map<Integer, Thing> heap = new HashMap<>();
        private long wrong;

        @Override
        public void run() {
            while (true) {
                step();
                try {
                    Thread.sleep(5);
                } catch (InterruptedException e) {
                    return;
                }
            }
        }

        private synchronized void step() {
            for (int n = 0; n < 50; n++) {
                Thing old = heap.put(ThreadLocalRandom.current().nextInt(OBJECTS), Thing.fresh());
                if (old != null && old.wrong()) {
                    wrong++;
                }
            }
        }

        synchronized long check() {
            return wrong + heap.values().stream().filter(Thing::wrong).count();
        }
    }

    public static void main(String[] args) throws IOException {
        List<Churn> threads = List.of(new Churn(), new Churn(), new Churn());
        threads.forEach(Thread::start);
        HttpServer server = HttpServer.create(new InetSocketAddress(8080), 0);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> answer(exchange, "{\"count\": " + count.incrementAndGet() + "}"));
        // What the collector did is the work.
        server.createContext("/check", exchange -> {
            long wrong = threads.stream().mapToLong(Churn::check).sum();
            long work = ManagementFactory.getGarbageCollectorMXBeans().stream().mapToLong(one -> one.getCollectionCount()).sum();
            answer(exchange, "{\"count\": " + count + ", \"work\": " + work + ", \"wrong\": " + wrong + "}");
        });
        server.start();
    }

    private static void answer(HttpExchange exchange, String text) throws IOException {
        byte[] body = text.getBytes();
        exchange.sendResponseHeaders(200, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }
}
