#!/usr/bin/perl
# What Sys::FreezeThaw 0.02 does, in other words, to be measured beside this package:
# every process but init and this one. Prints the milliseconds of freezing and thawing.
use strict;
use warnings;
use Time::HiRes qw(time sleep);

sub fields {
    my ($pid) = @_;
    open my $fh, '<', "/proc/$pid/stat" or return;
    my $line = <$fh>;
    defined $line or return;
    return split ' ', $line;
}

sub listing {
    my %parent;
    opendir my $dir, '/proc' or die "/proc: $!";
    for my $pid (grep /^[0-9]+$/, readdir $dir) {
        next if $pid == 1 || $pid == $$;
        my @f = fields($pid) or next;
        next if $f[2] =~ /^[TtZX]/;
        next if $f[22] == 0 && $f[23] == 0;    # no memory: a thread of the kernel
        $parent{$pid} = $f[3];
    }
    return %parent;
}

# Looks up to ten times, a millisecond apart, until test holds for all.
sub settle {
    my ($pids, $test) = @_;
    my @left = @$pids;
    for (1 .. 10) {
        @left = grep { my @f = fields($_); @f && !$test->($f[2]) } @left;
        return if !@left;
        sleep 0.001;
    }
}

sub freeze {
    my @passes;
    for (1 .. 10) {
        my %parent = listing();
        last if !%parent;
        while (%parent) {
            my @pass = grep { !exists $parent{ $parent{$_} } } keys %parent;
            delete @parent{@pass};
            kill 'STOP', @pass;
            push @passes, \@pass;
            settle(\@pass, sub { $_[0] =~ /^[TtZX]/ });
        }
    }
    return @passes;
}

sub thaw {
    for my $pass (reverse @_) {
        kill 'CONT', @$pass;
        settle($pass, sub { $_[0] !~ /^T/ });
    }
}

my $before = time;
my @passes = freeze();
my $frozen = time;
thaw(@passes);
my $after = time;
my $count = 0;
$count += @$_ for @passes;
printf "%d %.3f %.3f\n", $count, 1e3 * ($frozen - $before), 1e3 * ($after - $frozen);
