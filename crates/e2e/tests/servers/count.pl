# Counts in Redis over one connection: each answer must be one more than the last. Beside it counts by the name of this host, which
# is another one in a clone. Ends with SIGTERM, and says up to where it counted.
use strict;
use warnings;
use IO::Socket::INET;

my $server;
until ($server = IO::Socket::INET->new("server:6379")) { select undef, undef, undef, 0.1 }
my ($count, $stop) = (0, 0);
$SIG{TERM} = sub { $stop = 1 };

sub ask {
    print $server join("", map { "$_\r\n" } "*" . @_, map { ("\$" . length, $_) } @_);
    while (1) {
        # A signal may come between.
        my $line = <$server>;
        next if !defined $line && $!{EINTR};
        die "the connection ended after $count: $!\n" unless defined $line;
        return $line =~ /^:(\d+)\r$/ ? $1 : die "$_[0] was answered with $line";
    }
}

until ($stop) {
    open my $file, "<", "/proc/sys/kernel/hostname" or die "no host name: $!\n";
    chomp(my $host = <$file>);
    ask("HINCRBY", "counted", $host, 1);
    my $answer = ask("INCR", "count");
    die "the answer after $count was $answer\n" unless $answer == ++$count;
    # At a pace that leaves the processors to the others.
    select undef, undef, undef, 0.001;
}
print "counted to $count\n";
