complete -c passt -l stats -d 'Print event statistics, at most every DELAY seconds (needs --foreground)' -r -f
complete -c passt -s l -l log-file -d 'Log to this file instead of the system log' -r -F
complete -c passt -l log-size -d 'Largest size of the log file; old lines are dropped [default: 1048576]' -r -f
complete -c passt -l runas -d 'Run as this user and group; needs privilege [default: nobody, when started as root]' -r -f
complete -c passt -s c -l conf-path -d 'Socket for pesto to look at and change port forwarding' -r -F
complete -c passt -s p -l pcap -d 'Record the frames exchanged with guest or namespace, in pcap format' -r -F
complete -c passt -s P -l pid -d 'Write the process identifier to this file once everything is ready' -r -F
complete -c passt -s m -l mtu -d 'MTU told to the guest, 0: none; also set on the interface by --config-net [default: 65520]' -r -f
complete -c passt -s a -l address -d 'Address of the guest, once per IP version [default: the host\'s]' -r -f
complete -c passt -s n -l netmask -d 'IPv4 netmask, dotted or as number of bits [default: what the class of the address says]' -r -f
complete -c passt -s M -l mac-addr -d 'MAC address of the host as the guest sees it [default: 9a:55:9a:55:9a:55]' -r -f
complete -c passt -s g -l gateway -d 'Default gateway, once per IP version [default: the host\'s]' -r -f
complete -c passt -s i -l interface -d 'Host interface that addresses and routes are taken from [default: that of the default route]' -r -f
complete -c passt -s o -l outbound -d 'Source address of outbound traffic, once per IP version' -r -f
complete -c passt -l outbound-if4 -d 'Bind outbound IPv4 traffic to this host interface' -r -f
complete -c passt -l outbound-if6 -d 'Bind outbound IPv6 traffic to this host interface' -r -f
complete -c passt -s D -l dns -d 'Resolver told to the guest, may be repeated; \'none\': none [default: from /etc/resolv.conf]' -r -f
complete -c passt -l dns-forward -d 'Send queries for this address (ports 53 and 853) to the host\'s resolver' -r -f
complete -c passt -l dns-host -d 'The host\'s resolver that --dns-forward means [default: first of /etc/resolv.conf]' -r -f
complete -c passt -s S -l search -d 'Search domains, separated by spaces, may be repeated; \'none\': none [default: from /etc/resolv.conf]' -r -f
complete -c passt -s H -l hostname -d 'Host name told to the guest (DHCP)' -r -f
complete -c passt -l fqdn -d 'Fully qualified name told to the guest (DHCP, DHCPv6)' -r -f
complete -c passt -l map-host-loopback -d 'Destination that means the host\'s loopback, or \'none\' [default: the gateway\'s address]' -r -f
complete -c passt -l map-guest-addr -d 'Destination that means the host\'s address the guest shares, or \'none\' [default: none]' -r -f
complete -c passt -s t -l tcp-ports -d 'Forward TCP ports of the host to the guest [default: auto in pasta, none in passt] SPEC: none | [ADDR][%IFACE]/LIST | LIST, see passt(1) LIST: N[-M][:[TOADDR/]T[-U]] | ~N[-M] | all | auto ,...' -r -f
complete -c passt -s u -l udp-ports -d 'Forward UDP ports of the host to the guest [default: auto in pasta, none in passt]' -r -f
complete -c passt -s s -l socket -l socket-path -d 'UNIX socket for the hypervisor [default: first free of /tmp/passt_1.socket ... /tmp/passt_64.socket]' -r -F
complete -c passt -l repair-path -d 'UNIX socket for passt-repair, or \'none\' (accepted, no effect)' -r -F
complete -c passt -s F -l fd -d 'Use this inherited, connected socket; implies --one-off' -r -f
complete -c passt -s d -l debug -d 'Say more, on standard error, not to the system log'
complete -c passt -l trace -d 'Say even more: every packet; implies --debug'
complete -c passt -s q -l quiet -d 'Print warnings and errors only'
complete -c passt -s f -l foreground -d 'Do not run in the background'
complete -c passt -s e -l stderr -d 'Accepted for compatibility, has no effect'
complete -c passt -l chroot-fallback -d 'Accepted for compatibility, has no effect'
complete -c passt -s h -l help -d 'Print this help and exit'
complete -c passt -l version -d 'Print the version and exit'
complete -c passt -s 4 -l ipv4-only -d 'IPv4 only'
complete -c passt -s 6 -l ipv6-only -d 'IPv6 only'
complete -c passt -l no-dhcp-dns -d 'Do not tell the guest about resolvers'
complete -c passt -l no-dhcp-search -d 'Do not tell the guest about search domains'
complete -c passt -l no-map-gw -d 'The gateway\'s address does not mean the host'
complete -c passt -l no-tcp -d 'Do not carry TCP'
complete -c passt -l no-udp -d 'Do not carry UDP'
complete -c passt -l no-icmp -d 'Do not carry ICMP and ICMPv6; implies --no-ndp'
complete -c passt -l no-dhcp -d 'Do not answer DHCP'
complete -c passt -l no-ndp -d 'Do not answer NDP'
complete -c passt -l no-dhcpv6 -d 'Do not answer DHCPv6'
complete -c passt -l no-ra -d 'Do not send router advertisements'
complete -c passt -l freebind -d 'Allow -t and -u to listen on addresses the host does not have (yet)'
complete -c passt -l no-splice -d 'Loopback connections go through the tap, too'
complete -c passt -l vhost-user -d 'Speak vhost-user on the socket'
complete -c passt -l print-capabilities -d 'Print what the vhost-user back-end can do, as JSON, and exit'
complete -c passt -l migrate-exit -d 'Exit after a migration away from here (accepted, no effect)'
complete -c passt -l migrate-no-linger -d 'Close connections after a migration away from here (accepted, no effect)'
complete -c passt -s 1 -l one-off -d 'Exit when the hypervisor closes its connection'
