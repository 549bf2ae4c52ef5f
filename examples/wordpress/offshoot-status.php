<?php
// What this environment holds in memory, as JSON: shows after a clone what lived on and what went its own way.
// Both connections are persistent: they belong to the PHP worker and outlive the request.
//
//     connection ids      the same before and after a clone: the connection itself is alive in both
//     variable            a server variable of MariaDB; SET GLOBAL long_query_time changes it in memory only
//     counter             a counter that exists in Redis' memory only; ?peek=1 reads it without counting
declare(strict_types=1);

header('Content-Type: application/json');
header('Cache-Control: no-store');

try {
    mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);
    $password_file = getenv('WORDPRESS_DB_PASSWORD_FILE');
    $password = $password_file ? trim((string) file_get_contents($password_file)) : '';
    $host = getenv('WORDPRESS_DB_HOST') ?: 'mariadb';
    $user = getenv('WORDPRESS_DB_USER') ?: 'wordpress';
    $name = getenv('WORDPRESS_DB_NAME') ?: 'wordpress';
    $database = new mysqli("p:$host", $user, $password, $name);
    $row = $database->query('SELECT CONNECTION_ID() AS id, @@global.long_query_time AS variable')->fetch_assoc();

    $posts = null;
    $latest = null;
    if ($database->query("SHOW TABLES LIKE 'wp_posts'")->num_rows > 0) {
        $published = "FROM wp_posts WHERE post_type = 'post' AND post_status = 'publish'";
        $posts = (int) $database->query("SELECT COUNT(*) $published")->fetch_row()[0];
        $latest = $database->query("SELECT post_title $published ORDER BY ID DESC LIMIT 1")->fetch_row()[0] ?? null;
    }

    $redis = new Redis();
    $redis->pconnect(getenv('WORDPRESS_REDIS_HOST') ?: 'redis', 6379, 1.0, 'offshoot-status');
    $counter = isset($_GET['peek']) ? (int) $redis->get('offshoot:counter') : (int) $redis->incr('offshoot:counter');

    echo json_encode([
        'hostname' => gethostname(),
        'worker' => getmypid(),
        'mariadb' => [
            'connection_id' => (int) $row['id'],
            'long_query_time' => (float) $row['variable'],
            'posts' => $posts,
            'latest_post' => $latest,
        ],
        'redis' => [
            'client_id' => (int) $redis->rawCommand('CLIENT', 'ID'),
            'counter' => $counter,
        ],
    ], JSON_THROW_ON_ERROR), "\n";
} catch (Throwable $error) {
    http_response_code(503);
    error_log('offshoot-status: ' . $error->getMessage());
    echo json_encode(['error' => get_class($error)]), "\n";
}
