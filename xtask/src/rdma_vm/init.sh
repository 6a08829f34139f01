#!/bin/dash
# The guest's first process: makes soft-RoCE NICs, runs the tests, and says how they ended.
# (dash, since Debian's static busybox would run applets of its own for ip and tc.)
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin HOME=/
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm; mount -t tmpfs tmp /tmp

# qemu exits with 2v+1 for a byte v written to this port. v = 16 + the tests' exit code, so that 33 is success and no
# exit code of qemu itself is one of ours.
leave() {
  [ "$1" -gt 90 ] && set -- 90
  printf "\\$(printf %o $((16 + $1)))" | dd of=/dev/port bs=1 seek=244 count=1 2>/dev/null
  poweroff -f
}

for module in /mod/*.ko; do insmod "$module" || { echo "insmod $module failed"; leave 91; }; done
ip link set lo up
sysctl -qw net.ipv4.conf.all.rp_filter=0

# Interfaces come in pairs with one cable. Both ends are in one name space (soft-RoCE serves the first only), so rules
# are needed that packets between them go over the cable.
end() { # INTERFACE, ITS ADDRESS, THE OTHER END'S, ITS TABLE OF ROUTES
  sysctl -qw "net.ipv4.conf.$1.accept_local=1" "net.ipv4.conf.$1.rp_filter=0"
  ip link set "$1" mtu 4200 up
  ip addr add "$2/32" dev "$1"
  ip route add "$3" dev "$1" table "$4"
  ip rule add pref 10 iif "$1" lookup local
  ip rule add pref 20 oif "$1" lookup "$4"
  ip rule add pref 22 from "$2" to "$3" lookup "$4"
}
cable() { # INTERFACE, INTERFACE, NETWORK, TABLE
  ip link add "$1" type veth peer name "$2"
  end "$1" "$3.1" "$3.2" "$4"
  end "$2" "$3.2" "$3.1" "$(($4 + 1))"
  ip neigh add "$3.2" lladdr "$(cat "/sys/class/net/$2/address")" dev "$1" nud permanent
  ip neigh add "$3.1" lladdr "$(cat "/sys/class/net/$1/address")" dev "$2" nud permanent
}
cable va vb 10.9.1 101
cable vc vd 10.9.2 103
ip rule add pref 30 lookup local
ip rule del pref 0
# One more without a cable (the driver's module makes the interface), for measurements: soft-RoCE hands packets to itself there. (Two ranks that spin keep a small
# machine's processors from what the kernel has to do for packets on a cable.)
ip link set dummy0 mtu 4200 up
ip addr add 10.9.0.1/24 dev dummy0
for nic in rxe0:dummy0 rxe1:va rxe2:vb rxe3:vc rxe4:vd; do
  rdma link add "${nic%:*}" type rxe netdev "${nic#*:}" || leave 92
done
# The kernel fills the tables of addresses after a while; without one, queue pairs cannot be connected.
for nic in rxe0 rxe1 rxe2 rxe3 rxe4; do
  tries=0
  until grep -qs 0000:ffff: "/sys/class/infiniband/$nic/ports/1/gids/0" "/sys/class/infiniband/$nic/ports/1/gids/1"; do
    tries=$((tries + 1))
    [ $tries -gt 200 ] && { echo "$nic got no address"; leave 93; }
    usleep 50000
  done
done
echo "guest: Linux $(uname -r), soft-RoCE is up $(cut -d' ' -f1 /proc/uptime) s after the start"
failed=0
run() { "$@" || failed=$?; }
@TESTS@
leave $failed
