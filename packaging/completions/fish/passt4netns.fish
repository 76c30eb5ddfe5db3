complete -c passt4netns -l stats -d 'Print event statistics, at most every DELAY seconds (needs --foreground)' -r -f
complete -c passt4netns -s l -l log-file -d 'Log to this file instead of the system log' -r -F
complete -c passt4netns -l log-size -d 'Largest size of the log file; old lines are dropped [default: 1048576]' -r -f
complete -c passt4netns -l runas -d 'Run as this user and group; needs privilege [default: nobody, when started as root]' -r -f
complete -c passt4netns -s c -l conf-path -d 'Socket for pesto to look at and change port forwarding' -r -F
complete -c passt4netns -s p -l pcap -d 'Record the frames exchanged with guest or namespace, in pcap format' -r -F
complete -c passt4netns -s P -l pid -d 'Write the process identifier to this file once everything is ready' -r -F
complete -c passt4netns -s m -l mtu -d 'MTU told to the guest, 0: none; also set on the interface by --config-net [default: 65520]' -r -f
complete -c passt4netns -s a -l address -d 'Address of the guest, once per IP version [default: the host\'s]' -r -f
complete -c passt4netns -s n -l netmask -d 'IPv4 netmask, dotted or as number of bits [default: what the class of the address says]' -r -f
complete -c passt4netns -s M -l mac-addr -d 'MAC address of the host as the guest sees it [default: 9a:55:9a:55:9a:55]' -r -f
complete -c passt4netns -s g -l gateway -d 'Default gateway, once per IP version [default: the host\'s]' -r -f
complete -c passt4netns -s i -l interface -d 'Host interface that addresses and routes are taken from [default: that of the default route]' -r -f
complete -c passt4netns -s o -l outbound -d 'Source address of outbound traffic, once per IP version' -r -f
complete -c passt4netns -l outbound-if4 -d 'Bind outbound IPv4 traffic to this host interface' -r -f
complete -c passt4netns -l outbound-if6 -d 'Bind outbound IPv6 traffic to this host interface' -r -f
complete -c passt4netns -s D -l dns -d 'Resolver told to the guest, may be repeated; \'none\': none [default: from /etc/resolv.conf]' -r -f
complete -c passt4netns -l dns-forward -d 'Send queries for this address (ports 53 and 853) to the host\'s resolver' -r -f
complete -c passt4netns -l dns-host -d 'The host\'s resolver that --dns-forward means [default: first of /etc/resolv.conf]' -r -f
complete -c passt4netns -s S -l search -d 'Search domains, separated by spaces, may be repeated; \'none\': none [default: from /etc/resolv.conf]' -r -f
complete -c passt4netns -s H -l hostname -d 'Host name told to the guest (DHCP)' -r -f
complete -c passt4netns -l fqdn -d 'Fully qualified name told to the guest (DHCP, DHCPv6)' -r -f
complete -c passt4netns -l map-host-loopback -d 'Destination that means the host\'s loopback, or \'none\' [default: the gateway\'s address]' -r -f
complete -c passt4netns -l map-guest-addr -d 'Destination that means the host\'s address the guest shares, or \'none\' [default: none]' -r -f
complete -c passt4netns -s t -l tcp-ports -d 'Forward TCP ports of the host to the guest [default: auto in pasta, none in passt] SPEC: none | [ADDR][%IFACE]/LIST | LIST, see passt(1) LIST: N[-M][:[TOADDR/]T[-U]] | ~N[-M] | all | auto ,...' -r -f
complete -c passt4netns -s u -l udp-ports -d 'Forward UDP ports of the host to the guest [default: auto in pasta, none in passt]' -r -f
complete -c passt4netns -s T -l tcp-ns -d 'Forward TCP ports of the namespace\'s loopback to the host\'s [default: auto]' -r -f
complete -c passt4netns -s U -l udp-ns -d 'Forward UDP ports of the namespace\'s loopback to the host\'s [default: auto]' -r -f
complete -c passt4netns -s I -l ns-ifname -d 'Name of the interface in the namespace [default: the host\'s, or tap0]' -r -f
complete -c passt4netns -l userns -d 'User namespace to join' -r -F
complete -c passt4netns -l netns -d 'Network namespace to join; a name means /run/netns/NAME' -r -F
complete -c passt4netns -l ns-mac-addr -d 'MAC address of the interface in the namespace [default: random]' -r -f
complete -c passt4netns -s d -l debug -d 'Say more, on standard error, not to the system log'
complete -c passt4netns -l trace -d 'Say even more: every packet; implies --debug'
complete -c passt4netns -s q -l quiet -d 'Print warnings and errors only'
complete -c passt4netns -s f -l foreground -d 'Do not run in the background'
complete -c passt4netns -s e -l stderr -d 'Accepted for compatibility, has no effect'
complete -c passt4netns -l chroot-fallback -d 'Accepted for compatibility, has no effect'
complete -c passt4netns -s h -l help -d 'Print this help and exit'
complete -c passt4netns -l version -d 'Print the version and exit'
complete -c passt4netns -s 4 -l ipv4-only -d 'IPv4 only'
complete -c passt4netns -s 6 -l ipv6-only -d 'IPv6 only'
complete -c passt4netns -l dhcp-dns -d 'Tell the guest about resolvers by DHCP, DHCPv6 and NDP'
complete -c passt4netns -l dhcp-search -d 'Tell the guest about search domains by DHCP, DHCPv6 and NDP'
complete -c passt4netns -l no-map-gw -d 'The gateway\'s address does not mean the host'
complete -c passt4netns -l no-tcp -d 'Do not carry TCP'
complete -c passt4netns -l no-udp -d 'Do not carry UDP'
complete -c passt4netns -l no-icmp -d 'Do not carry ICMP and ICMPv6; implies --no-ndp'
complete -c passt4netns -l no-dhcp -d 'Do not answer DHCP'
complete -c passt4netns -l no-ndp -d 'Do not answer NDP'
complete -c passt4netns -l no-dhcpv6 -d 'Do not answer DHCPv6'
complete -c passt4netns -l no-ra -d 'Do not send router advertisements'
complete -c passt4netns -l freebind -d 'Allow -t and -u to listen on addresses the host does not have (yet)'
complete -c passt4netns -l host-lo-to-ns-lo -d 'Host loopback connections arrive on the namespace\'s loopback'
complete -c passt4netns -l no-splice -d 'Loopback connections go through the tap, too'
complete -c passt4netns -l splice-only -d 'No tap: forward loopback connections only'
complete -c passt4netns -l print-capabilities -d 'Print what the vhost-user back-end can do, as JSON, and exit'
complete -c passt4netns -l netns-only -d 'Neither join nor create a user namespace; implied by --netns without --userns'
complete -c passt4netns -l no-netns-quit -d 'Stay when the namespace\'s path or process goes away'
complete -c passt4netns -l no-pidns -d 'Run COMMAND without a PID namespace of its own'
complete -c passt4netns -l config-net -d 'Configure the interface in the namespace: addresses, routes, link up'
complete -c passt4netns -l no-copy-routes -d 'With --config-net, only a default route (deprecated)'
complete -c passt4netns -l no-copy-addrs -d 'With --config-net, only one address per IP version (deprecated)'
