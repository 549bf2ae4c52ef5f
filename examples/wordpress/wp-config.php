<?php
// Everything comes from the environment, so that the same image runs anywhere.

$offshoot_password_file = getenv('WORDPRESS_DB_PASSWORD_FILE');
define('DB_NAME', getenv('WORDPRESS_DB_NAME') ?: 'wordpress');
define('DB_USER', getenv('WORDPRESS_DB_USER') ?: 'wordpress');
define('DB_PASSWORD', $offshoot_password_file ? trim((string) file_get_contents($offshoot_password_file)) : '');
define('DB_HOST', getenv('WORDPRESS_DB_HOST') ?: 'mariadb');
define('DB_CHARSET', 'utf8mb4');
define('DB_COLLATE', '');
$table_prefix = 'wp_';

// No keys and salts here: WordPress makes its own and keeps them in the database, so they differ between
// sites and a clone's visitors stay logged in.

// The site's address is the one it is asked for: a clone answers under its own name without being told.
// (Debian's nginx leaves the port out of HTTP_HOST; the edge tells the whole of it, and lets nobody else tell.)
$offshoot_host = $_SERVER['HTTP_X_FORWARDED_HOST'] ?? $_SERVER['HTTP_HOST'] ?? 'localhost';
if (!preg_match('/^[A-Za-z0-9.-]+(:[0-9]{1,5})?$/', $offshoot_host)) {
    $offshoot_host = 'localhost';
}
$_SERVER['HTTP_HOST'] = $offshoot_host;
if (($_SERVER['HTTP_X_FORWARDED_PROTO'] ?? '') === 'https') {
    $_SERVER['HTTPS'] = 'on';
}
$offshoot_scheme = ($_SERVER['HTTPS'] ?? '') === 'on' ? 'https' : 'http';
define('WP_HOME', "$offshoot_scheme://$offshoot_host");
define('WP_SITEURL', WP_HOME);
unset($offshoot_host, $offshoot_scheme, $offshoot_password_file);

// Nothing happens behind the visitor's back: no timed jobs, no updates, no calls to other hosts.
define('DISABLE_WP_CRON', true);
define('AUTOMATIC_UPDATER_DISABLED', true);
define('WP_AUTO_UPDATE_CORE', false);
define('WP_HTTP_BLOCK_EXTERNAL', true);
define('DISALLOW_FILE_EDIT', true);
define('FS_METHOD', 'direct');
define('WP_DEBUG', false);

if (!defined('ABSPATH')) {
    define('ABSPATH', __DIR__ . '/');
}
require_once ABSPATH . 'wp-settings.php';
