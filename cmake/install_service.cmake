# Units of systemd, by which it runs nbdkit for images, their user, and what they start.
set(units ${CMAKE_SOURCE_DIR}/packaging/systemd)
install(FILES ${units}/qimg@.socket DESTINATION lib/systemd/system)
install(FILES ${units}/qimg.sysusers DESTINATION lib/sysusers.d RENAME qimg.conf)
install(PROGRAMS ${units}/serve-instance DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/qimg)

# As for the plugin, `cmake --install --prefix` decides last; the unit names what it starts in full.
install(CODE "
    set(LIBEXECDIR \"${CMAKE_INSTALL_LIBEXECDIR}\")
    cmake_path(ABSOLUTE_PATH LIBEXECDIR BASE_DIRECTORY \"\${CMAKE_INSTALL_PREFIX}\")
    configure_file(\"${units}/qimg@.service.in\" \"${CMAKE_BINARY_DIR}/qimg@.service\" @ONLY)
    file(INSTALL DESTINATION \"\${CMAKE_INSTALL_PREFIX}/lib/systemd/system\" TYPE FILE
        FILES \"${CMAKE_BINARY_DIR}/qimg@.service\")")
